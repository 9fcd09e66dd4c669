"""How much of one text stands in another, whichever way either is wrapped."""

from __future__ import annotations

import re
from collections.abc import Callable

LONG = 60  # characters; shorter pieces (headings, list items) recur between unrelated texts
SENTENCE_END = re.compile(r"(?<=[.!?;:])\s")


def shared_share(calibration: str, evaluation: str) -> float:
    """Share of the evaluation text that also stands in the calibration text, 0 to 1.

    Counted in long lines, and again in long sentences, since one text may be wrapped otherwise than the other; the
    larger share counts. Only characters of long pieces count; a text without any is compared as a whole.
    """
    cuttings: tuple[Callable[[str], list[str]], ...] = (_long_lines, _long_sentences)
    return max(_share(cut(calibration), cut(evaluation), calibration.split() == evaluation.split()) for cut in cuttings)


def _share(calibration: list[str], evaluation: list[str], same: bool) -> float:
    known, total = set(calibration), sum(map(len, evaluation))
    return sum(len(piece) for piece in evaluation if piece in known) / total if total else float(same)


def _long_lines(text: str) -> list[str]:
    return _long(text.splitlines())


def _long_sentences(text: str) -> list[str]:
    return _long(SENTENCE_END.split(text))


def _long(pieces: list[str]) -> list[str]:
    tidy = (" ".join(piece.split()) for piece in pieces)
    return [piece for piece in tidy if len(piece) >= LONG]
