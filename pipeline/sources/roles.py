"""The texts of a role (calibration, recovery, evaluation) as they lie in a texts folder: one file each, names and shares beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.files import read_json
from pipeline.sources.folder import TEXT_OF, TEXTS


@dataclass(frozen=True)
class SharedText:
    """A text, what people call it, and its part of what is read."""

    name: str
    share: float
    text: str


def file_of(role: str, number: int) -> str:
    """File name of a role's text, counted from 0: ``calibration.txt``, ``calibration-2.txt``."""
    first = TEXT_OF[role]
    return first if number == 0 else f"{first.removesuffix('.txt')}-{number + 1}.txt"


def entries(folder: Path, role: str) -> list[dict[str, Any]]:
    """What text.json says of a role's texts; of a folder without that file, that there is one. Empty where the role has none."""
    if (folder / TEXTS).is_file():
        found = read_json(folder / TEXTS).get(role, [])
        return [found] if isinstance(found, dict) else list(found)
    return [{"name": TEXT_OF[role]}] if (folder / TEXT_OF[role]).is_file() else []


def texts_of(folder: Path, role: str) -> tuple[SharedText, ...]:
    """The texts of a role, in the recipe's order.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    folder.stat()
    return tuple(
        SharedText(entry["name"], entry.get("share", 1.0), (folder / file_of(role, number)).read_text(encoding="utf-8"))
        for number, entry in enumerate(entries(folder, role))
    )


def role_files(folder: Path, role: str) -> list[Path]:
    """Where the texts of a role lie."""
    return [folder / file_of(role, number) for number in range(len(entries(folder, role)))]
