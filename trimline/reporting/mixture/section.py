"""What other counts of experts would have cost, and which experts the router sends tokens to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trimline.reporting import formats, metrics
from trimline.reporting.content import Cell, Column, Item, Note, Plot, Table, text_row
from trimline.reporting.data import ExpertCurve, ExpertPoint, ReportData, RoutedRow
from trimline.reporting.tasks import DIVERGENCE, SAME_BEST

ROUTED = "tokens of the calibration text that chose the expert, over all choices in its block, as the step that removes experts saw it"


def expert_items(data: ReportData) -> Iterator[Item]:
    """Nothing of a model without experts, or of a run that removed none."""
    if data.expert_curve is not None:
        yield from _curve(data.expert_curve, "this run, before recovery" if data.recovery else "this run")
    if data.routed:
        yield Plot("routed", "Routed share per block and expert")
        yield _usage(data.routed)


def _curve(curve: ExpertCurve, planned: str) -> Iterator[Item]:
    columns = (
        Column("Experts in every block", True),
        Column("Removed", True),
        Column("Perplexity", True, metrics.PERPLEXITY),
        Column("KL to dense", True, DIVERGENCE),
        Column("Same best token", True, SAME_BEST),
        Column(""),
    )
    yield Plot("expert-curve", "Over counts of experts")
    yield Table(columns, tuple(_point(point, curve, planned) for point in curve.points))
    yield Note(
        f"{curve.text}, read by the dense model in which the removed experts cannot be chosen; no model of another count was built or trained.",
        "quiet",
    )
    if curve.others:
        yield Note("In every point the other units that this run removed are gone too.", "quiet")
    if not curve.ranked:
        yield Note("This run chose its experts anew as they went; the other points go by the first scores alone.", "quiet")
    for why in curve.ruled_out:
        yield Note(f"Not possible: {why}")


def _point(point: ExpertPoint, curve: ExpertCurve, planned: str) -> tuple[Cell, ...]:
    return (
        Cell(f"{point.kept:,}"),
        Cell(formats.percent(1 - point.kept / curve.experts)),
        Cell(formats.perplexity(point.perplexity), detail=formats.error(point.perplexity)),
        Cell(formats.NONE if point.divergence is None else f"{point.divergence:.3f}"),
        Cell(formats.NONE if point.same_best is None else formats.percent(point.same_best)),
        Cell(planned if point.planned else ""),
    )


def _usage(rows: Sequence[RoutedRow]) -> Table:
    columns = (
        Column("Block", True),
        Column("Most routed share", True, ROUTED),
        Column("Least", True),
        Column("Never chosen", True),
        Column("Share of the removed", True),
        Column("Removed experts"),
    )
    return Table(columns, tuple(_used(row) for row in rows), "Every block's experts", folded=True)


def _used(row: RoutedRow) -> tuple[Cell, ...]:
    gone = [expert for expert in range(len(row.shares)) if expert not in row.kept]
    return text_row(
        str(row.block),
        *(formats.percent(share) for share in (max(row.shares), min(row.shares))),
        str(sum(not share for share in row.shares)),
        formats.percent(sum(row.shares[expert] for expert in gone)),
        ", ".join(map(str, gone)) or formats.NONE,
    )
