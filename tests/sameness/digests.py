"""SHA-256 of what a folder holds, file by file, apart from what differs from run to run or with the place of the code."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Records of when, how long and from what, and the sums of folders that hold one.
RECORDS = frozenset({"artefact.json", "run.json", "SHA256SUMS"})
# Of a package: what repeats measured figures, and the list of everything that is installed.
OF_A_PACKAGE = frozenset({"README.md", "manifest.json", "report.html", "report.md", "sbom.cdx.json"})
# Stages that measure, or show what was measured.
MEASURING = frozenset({"latency", "benchmark", "report"})
# Says where the dense checkpoint lies, by its whole path where the user has it in a folder.
PLACES = frozenset({"source.json"})


def file_digest(path: Path) -> str:
    """SHA-256 of one file; in one that says where something lies, the folder of this process counts as ``.``."""
    if path.name in PLACES:
        return hashlib.sha256(path.read_bytes().replace(bytes(Path.cwd()), b".")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path, name: str, *, left_out: frozenset[str] = RECORDS) -> dict[str, str]:
    """``name/path`` to digest of every file in a folder that is not left out by its name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out)
    return {f"{name}/{path.relative_to(folder).as_posix()}": file_digest(path) for path in files}


def differences(kept: dict[str, str], found: dict[str, str]) -> list[str]:
    """A sentence for each file that is not what it was."""
    changed = [f"{name} differs." for name in sorted(kept.keys() & found.keys()) if kept[name] != found[name]]
    gone = [f"{name} is not made any more." for name in sorted(kept.keys() - found.keys())]
    new = [f"{name} is new." for name in sorted(found.keys() - kept.keys())]
    return [*changed, *gone, *new]
