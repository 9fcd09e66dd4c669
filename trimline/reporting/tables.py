"""The one table that every rendering shows: the dense model against the pruned one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trimline.reporting import formats, metrics
from trimline.reporting.content import Cell, Column, Table
from trimline.reporting.data import ExpertCurve, Measure, ModelRow, Phase, ReportData, WorkloadRow
from trimline.reporting.headline import speedup_cell

Row = tuple[Cell, Cell, Cell, Cell]
Shown = tuple[str, str, Callable[[Any], str], str]  # name, field of ModelRow, format, formula
PHASES: tuple[Phase, Phase] = ("prefill", "decode")
RUNNING: tuple[Shown, ...] = (
    ("Peak memory", "peak_memory_bytes", formats.size, metrics.PEAK_MEMORY),
    ("Cold start", "cold_start_seconds", formats.duration, metrics.COLD_START),
)


def comparison_table(data: ReportData) -> Table | None:
    """Rows of metrics, columns dense, pruned and change. Speed stands there only where both perplexities do."""
    dense, pruned = data.model("dense"), data.model("pruned")
    if dense is None or pruned is None:
        return None
    rows = [*_rows(dense, pruned, _sizes(data.flops_context)), *_before_recovery(dense, data), *_perplexity_row(dense, pruned)]
    rows += _other_counts(data.expert_curve)
    if data.has_accuracy:
        for phase in PHASES:
            workload = data.workload(phase)
            rows += _speed_rows(workload) if workload else []
    rows += _rows(dense, pruned, RUNNING)
    columns = (Column("Metric"), Column("Dense", numeric=True), Column("Pruned", numeric=True), Column("Change", numeric=True))
    return Table(columns, tuple(rows))


def tokens_per_second(workload: WorkloadRow, latency: Measure) -> float:
    """Throughput of one model in a workload, from its median latency."""
    return workload.batch * workload.tokens / latency.value


def _rows(dense: ModelRow, pruned: ModelRow, metrics_shown: tuple[Shown, ...]) -> Iterator[Row]:
    for name, field, show, formula in metrics_shown:
        before, after = getattr(dense, field), getattr(pruned, field)
        if before is not None or after is not None:
            yield Cell(name, formula=formula), Cell(show(before)), Cell(show(after)), Cell(formats.change(before, after))


def _sizes(context: int) -> tuple[Shown, ...]:
    return (
        ("Parameters", "parameters", formats.count, metrics.PARAMETERS),
        ("Decoder linear parameters", "decoder_parameters", formats.count, metrics.DECODER_PARAMETERS),
        ("Active decoder parameters", "active_parameters", formats.count, metrics.ACTIVE_PARAMETERS),
        ("Decoder FLOPs per token", "decoder_flops", formats.count, metrics.FLOPS.format(context=context)),
        ("Checkpoint size", "checkpoint_bytes", formats.size, metrics.CHECKPOINT),
        ("ONNX size", "onnx_bytes", formats.size, metrics.ONNX),
    )


def _before_recovery(dense: ModelRow, data: ReportData) -> Iterator[Row]:
    if data.recovery:
        before = data.recovery.before
        relative = formats.change(dense.perplexity.value if dense.perplexity else None, before.value)
        shown = Cell(formats.perplexity(before), detail=formats.error(before))
        yield Cell("Perplexity before recovery", formula=metrics.PERPLEXITY), Cell(""), shown, Cell(relative)


def _perplexity_row(dense: ModelRow, pruned: ModelRow) -> Iterator[Row]:
    before, after = dense.perplexity, pruned.perplexity
    if before or after:
        relative = formats.change(before.value if before else None, after.value if after else None)
        yield (
            Cell("Perplexity", formula=metrics.PERPLEXITY),
            Cell(formats.perplexity(before), detail=formats.error(before)),
            Cell(formats.perplexity(after), detail=formats.error(after)),
            Cell(relative),
        )


def _other_counts(curve: ExpertCurve | None) -> Iterator[Row]:
    """One row for all other counts of experts, which were judged and not built."""
    others = [point for point in curve.points if not point.planned and point.kept < curve.experts] if curve else []
    if others:
        name = f"Perplexity with {', '.join(str(point.kept) for point in others)} experts"
        found = ", ".join(formats.perplexity(point.perplexity) for point in others)
        yield Cell(name, formula=metrics.PERPLEXITY), Cell(""), Cell(found), Cell("")


def _speed_rows(workload: WorkloadRow) -> list[Row]:
    phase = workload.phase.capitalize()
    rates = [tokens_per_second(workload, latency) for latency in (workload.dense, workload.pruned)]
    latency = (
        Cell(f"{phase} latency", formula=f"{workload.name}: {metrics.LATENCY}"),
        Cell(formats.duration(workload.dense.value)),
        Cell(formats.duration(workload.pruned.value)),
        speedup_cell(workload),
    )
    throughput = (
        Cell(f"{phase} tokens/s", formula=metrics.TOKENS),
        Cell(formats.plain(rates[0], 1)),
        Cell(formats.plain(rates[1], 1)),
        Cell(formats.change(*rates)),
    )
    return [latency, throughput, *_gain_row(phase, workload)]


def _gain_row(phase: str, workload: WorkloadRow) -> Iterator[Row]:
    if workload.realised_gain is not None:
        yield (
            Cell(f"{phase} realised gain", formula=metrics.REALISED),
            Cell(""),
            Cell(formats.plain(workload.realised_gain.value), detail=formats.interval(workload.realised_gain)),
            Cell(formats.ratio(workload.allowed), detail="allowed" if workload.allowed else ""),
        )
