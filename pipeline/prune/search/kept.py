"""What a search has judged, in a file, so that a search that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.artefacts.artefact import digest
from pipeline.prune.allocation.evolution import Places

Judged = tuple[Places, int]  # a choice, and the round that it was judged in


class Kept:
    """Losses and seconds by choice and round; every one is in the file before the next is begun.

    A search draws its mutants from a seed, so one that begins anew asks for what it asked before, and finds it here. The file's name
    holds a digest of all that the losses depend on.

    Args:
        work: folder of the file; None keeps nothing.
        depends: JSON-compatible.
    """

    def __init__(self, work: Path | None, depends: Any) -> None:
        self._file = work / f"search-{digest(depends)[:16]}.jsonl" if work else None
        self._known: dict[Judged, tuple[float, float]] = dict(_lines(self._file)) if self._file and self._file.is_file() else {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, judged: Judged) -> tuple[float, float] | None:
        """Loss and seconds, where they are known."""
        return self._known.get(judged)

    def add(self, judged: Judged, loss: float, seconds: float) -> None:
        """Keeps what was found."""
        self._known[judged] = (loss, seconds)
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        places, round_ = judged
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"places": places, "round": round_, "loss": loss, "seconds": seconds}) + "\n")


def _lines(file: Path) -> list[tuple[Judged, tuple[float, float]]]:
    """Whole lines; a kill may leave half of the last one, which is cut off."""
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    found = [json.loads(line) for line in whole.splitlines()]
    return [((tuple(line["places"]), line["round"]), (line["loss"], line["seconds"])) for line in found]
