"""The section about speed: every workload with its perplexities, the distributions, the roofline, the control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trimline.reporting import formats, metrics
from trimline.reporting.content import Cell, Column, Item, Note, Plot, Section, Table
from trimline.reporting.data import Measure, ReportData, WorkloadRow
from trimline.reporting.headline import speedup_cell, unresolved
from trimline.reporting.tables import tokens_per_second

P99_SAMPLES = 100  # with fewer, the 99th percentile is one or two outliers
# Of an engine's call, under trtexec's names: the benchmark's name and what it means.
PARTS = {
    "Enqueue": ("enqueue", metrics.ENQUEUE),
    "H2D": ("h2d", metrics.H2D),
    "GPU compute": ("compute", metrics.COMPUTE),
    "D2H": ("d2h", metrics.D2H),
    "Host latency": ("host_latency", metrics.HOST_LATENCY),
}
SUMMARY = ("Mean", "Min", "Max", "Std", "p50", "p75", "p90", "p95", "p99")


def speed_section(data: ReportData) -> Section:
    """Speeds beside perplexities; without perplexities of both models no speed is printed."""
    return Section("speed", "Is it faster?", tuple(_items(data)))


def summary(samples: Sequence[float]) -> tuple[str, ...]:
    """Mean, min, max, std, p50, p75, p90, p95, p99 of raw seconds, as text; p99 only from 100 samples on."""
    values = np.asarray(samples, dtype=np.float64)
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    percentiles = np.percentile(values, (50, 75, 90, 95, 99))
    shown = [formats.duration(float(v)) for v in (values.mean(), values.min(), values.max(), spread, *percentiles)]
    return (*shown[:-1], shown[-1] if len(values) >= P99_SAMPLES else f"n/a (n={len(values)})")


def _items(data: ReportData) -> Iterator[Item]:
    if not data.workloads:
        yield Note("The benchmark was not run, so nothing is said about speed.", "quiet")
        return
    if not data.has_accuracy:
        yield Note("Speed was measured, but perplexity was not: a speed without its price is not printed.", "quiet")
        return
    yield _speedups(data)
    yield _gains(data)
    if any(workload.dense_parts for workload in data.workloads):
        yield _engine_parts(data)
    if any(workload.dense_samples and workload.pruned_samples for workload in data.workloads):
        yield Plot("latency", "Latency in every timed round, dense against pruned")
        yield _statistics(data)
    if data.decode_points:
        yield Plot("tradeoff", "Perplexity against decode speed")


def _speedups(data: ReportData) -> Table:
    columns = (
        Column("Workload"),
        Column("Dense", True, metrics.LATENCY),
        Column("Pruned", True, metrics.LATENCY),
        Column("Speed-up", True, metrics.SPEEDUP),
        Column("Dense tokens/s", True, metrics.TOKENS),
        Column("Pruned tokens/s", True, metrics.TOKENS),
        Column("Perplexity", True, metrics.PERPLEXITY),
    )
    return Table(columns, tuple(_speedup_row(data, workload) for workload in data.workloads))


def _speedup_row(data: ReportData, workload: WorkloadRow) -> tuple[Cell, ...]:
    perplexities = [row.perplexity for row in (data.model("dense"), data.model("pruned")) if row]
    return (
        Cell(_name(workload)),
        Cell(formats.duration(workload.dense.value)),
        Cell(formats.duration(workload.pruned.value)),
        speedup_cell(workload),
        Cell(formats.plain(tokens_per_second(workload, workload.dense), 1)),
        Cell(formats.plain(tokens_per_second(workload, workload.pruned), 1)),
        Cell(" → ".join(formats.plain(measure.value) for measure in perplexities if measure)),
    )


def _gains(data: ReportData) -> Table:
    columns = (
        Column("Workload"),
        Column("Speed-up", True, metrics.SPEEDUP),
        Column("Roofline allows", True, metrics.ALLOWED),
        Column("Realised gain", True, metrics.REALISED),
        Column("Control A/A", True, metrics.CONTROL),
        Column("Rounds", True, metrics.ROUNDS),
        Column("Verdict"),
    )
    return Table(columns, tuple(_gain_row(workload) for workload in data.workloads), "Against the roofline")


def _gain_row(workload: WorkloadRow) -> tuple[Cell, ...]:
    return (
        Cell(_name(workload)),
        Cell(formats.ratio(workload.speedup.value), detail=formats.interval(workload.speedup)) if workload.speedup else Cell(formats.NONE),
        Cell(formats.ratio(workload.allowed)),
        _with_interval(workload.realised_gain, 2),
        _with_interval(workload.control, 3),
        Cell(str(len(workload.pruned_samples)) if workload.pruned_samples else formats.NONE),
        Cell(workload.verdict or formats.NONE, "quiet" if unresolved(workload) else "plain"),
    )


def _engine_parts(data: ReportData) -> Table:
    columns = (Column("Workload"), Column("Model"), *(Column(title, True, meaning) for title, (_, meaning) in PARTS.items()))
    rows = [
        (Cell(_name(workload)), Cell(model), *(Cell(formats.duration(parts[name])) for name, _ in PARTS.values()))
        for workload in data.workloads
        for model, parts in (("dense", workload.dense_parts), ("pruned", workload.pruned_parts))
        if parts
    ]
    return Table(columns, tuple(rows), "What a call of the TensorRT engine is made of")


def _statistics(data: ReportData) -> Table:
    columns = (Column("Workload"), Column("Model"), *(Column(name, True) for name in SUMMARY), Column("n", True))
    rows = [
        tuple(Cell(text) for text in (_name(workload), model, *summary(samples), str(len(samples))))
        for workload in data.workloads
        for model, samples in (("dense", workload.dense_samples), ("pruned", workload.pruned_samples))
        if samples
    ]
    return Table(columns, tuple(rows), "Statistics of the raw samples", folded=True)


def _with_interval(measure: Measure | None, digits: int) -> Cell:
    if measure is None:
        return Cell(formats.NONE)
    return Cell(formats.plain(measure.value, digits), detail=formats.interval(measure, digits))


def _name(workload: WorkloadRow) -> str:
    batch = f", batch {workload.batch}" if workload.batch > 1 else ""
    return f"{workload.phase.capitalize()}: {workload.name}{batch}"
