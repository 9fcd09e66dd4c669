"""Both models asked for what stands far back in a text, length by length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluate.chance import beats_chance, flips
from trimline.reporting import formats
from trimline.reporting.accuracy.flips import COLUMN
from trimline.reporting.content import Cell, Column, Item, Note, Table, Tone
from trimline.reporting.data import RetrievalRow

SAME = "share of texts to which both models give one answer, right or wrong"


def retrieval_rows(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Iterator[RetrievalRow]:
    """From what the evaluation keeps of both models."""
    for before, after in zip(dense["lengths"], pruned["lengths"], strict=True):
        sides = [[float(a == b) for a, b in zip(one["chosen"], one["right"], strict=True)] for one in (before, after)]
        found, texts = flips(*sides), len(before["right"])
        same = sum(a == b for a, b in zip(before["chosen"], after["chosen"], strict=True)) / texts
        first, second = (sum(side) / texts for side in sides)
        known = beats_chance(int(sum(sides[0])), texts, dense["chance"])
        yield RetrievalRow(before["length"], texts, dense["chance"], first, second, same, found.lost, found.gained, found.p, known)


def retrieval_items(rows: Sequence[RetrievalRow]) -> Iterator[Item]:
    """The table; a length that the dense model cannot do is quiet, and said to be so."""
    figures = (Column("Dense", True), Column("Pruned", True), Column("Same answer", True, SAME), COLUMN)
    yield Table((Column("Tokens", True), Column("Texts", True), *figures), tuple(map(_row, rows)))
    yield Note(
        f"Eight people stand in each text, and the surname of one is asked for at its end; guessing finds {formats.percent(rows[0].chance)}.",
        "quiet",
    )
    if cannot := [f"{row.length:,}" for row in rows if not row.counts]:
        yield Note(f"Not counted: {', '.join(cannot)} tokens, where the dense model is within three standard errors of guessing.")


def _row(row: RetrievalRow) -> tuple[Cell, ...]:
    tone: Tone = "plain" if row.counts else "quiet"
    texts = (f"{row.length:,}", str(row.texts), *(formats.percent(share) for share in (row.dense, row.pruned, row.same)))
    return *(Cell(text, tone) for text in texts), Cell(f"{row.lost}, {row.gained}", tone, detail=f"p = {row.p:.2g}")
