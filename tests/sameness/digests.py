"""SHA-256 of what a folder holds, file by file, apart from what differs from run to run or with the place of the work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

# Records of when, how long and from what; sums of folders that hold one; what shows measured figures; what all is installed.
LEFT_OUT = frozenset({"artefact.json", "run.json", "SHA256SUMS", "results.md", "report.html", "report.md", "sbom.cdx.json"})
# Documents hold them too.
INSTALLED = frozenset({"environment", "made_with"})
# Of documents of measured figures the keys count alone. How many rounds are measured depends on how quiet the machine is.
FORMS = frozenset({"results.json", "report.json", "manifest.json"})
# Says where the dense checkpoint lies, by its whole path where the user has it in a folder.
PLACES = frozenset({"source.json"})


def folder_digests(folder: Path, name: str) -> dict[str, str]:
    """``name/path`` to digest of every file in a folder that is not left out by its name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LEFT_OUT)
    return {f"{name}/{path.relative_to(folder).as_posix()}": file_digest(path) for path in files}


def file_digest(path: Path) -> str:
    """SHA-256 of one file; of one that says where something lies, with the folder of this process as ``.``."""
    if path.name in FORMS:
        keys = json.dumps(form(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True)
        return hashlib.sha256(keys.encode()).hexdigest()
    if path.name in PLACES:
        return hashlib.sha256(path.read_bytes().replace(bytes(Path.cwd()), b".")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def form(document: Any) -> Any:
    """The keys of a JSON document, but for those of what is installed; a list has the forms that occur in it, once each."""
    if isinstance(document, dict):
        return {key: None if key in INSTALLED else form(value) for key, value in document.items()}
    if isinstance(document, list):
        return sorted({json.dumps(form(value), sort_keys=True) for value in document})
    return None


def differences(kept: dict[str, str], found: dict[str, str]) -> list[str]:
    """A sentence for each file that is not what it was."""
    changed = [f"{name} differs." for name in sorted(kept.keys() & found.keys()) if kept[name] != found[name]]
    gone = [f"{name} is not made any more." for name in sorted(kept.keys() - found.keys())]
    new = [f"{name} is new." for name in sorted(found.keys() - kept.keys())]
    return [*changed, *gone, *new]
