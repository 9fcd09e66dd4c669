"""Which of OpenVINO's packages are installed. None of them is imported before it is needed: together they take seconds."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.common.errors import TrimlineError, shortened

OPENVINO, GENAI, TOKENIZERS, NNCF = "openvino", "openvino_genai", "openvino_tokenizers", "nncf"
EXTRA = "pip install 'trimline[openvino]'."
PACKAGES = ("openvino", "openvino-genai", "openvino-tokenizers", "nncf")


def has(module: str) -> bool:
    """Whether a package can be imported; nothing is."""
    return importlib.util.find_spec(module) is not None


def needs_openvino(*further: str) -> None:
    """Demands openvino and further ones of its packages.

    Raises:
        TrimlineError: one is not installed; all that are missing are named.
    """
    missing = [module.replace("_", "-") for module in (OPENVINO, *further) if not has(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise TrimlineError(f"{' and '.join(missing)} {verb} not installed.", EXTRA)


def refused(program: str, folder: Path, error: Exception) -> TrimlineError:
    """What is said where a program cannot open a folder; the exceptions of OpenVINO's programs are plain RuntimeErrors with a log in them."""
    why = shortened(" ".join(str(error).split()), 300)
    return TrimlineError(f"{program} cannot open {folder}: {why}", "Export it again.")


def versions() -> dict[str, str]:
    """What is installed of OpenVINO, by distribution."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def clash(found: dict[str, str]) -> str:
    """Half a sentence on packages that are not of one release; empty where all are. Their libraries call each other's C++.

    Args:
        found: as ``versions``.
    """
    releases = {name: ".".join(number.split(".")[:2]) for name, number in found.items() if name != "nncf"}
    if len(set(releases.values())) < 2:
        return ""
    return " and ".join(f"{name} {found[name]}" for name in releases) + " are of different releases"
