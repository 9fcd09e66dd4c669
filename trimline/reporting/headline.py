"""The result in one sentence, and the few figures that a reader wants first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trimline.reporting import formats
from trimline.reporting.accuracy.positions import worse_late
from trimline.reporting.content import Cell
from trimline.reporting.data import Measure, Phase, Removed, ReportData, WorkloadRow
from trimline.reporting.tasks import worse_elsewhere

UNRESOLVED = "not resolved"  # as the benchmark words it


@dataclass(frozen=True)
class Tile:
    """One figure of the header: ``before`` and ``after`` in its unit, and what that means."""

    label: str
    before: str
    after: str
    verdict: str


def headline(data: ReportData) -> str:
    """One sentence: what went, what it costs in perplexity, what it gains in speed."""
    dense, pruned = data.model("dense"), data.model("pruned")
    if dense is None or pruned is None:
        return "There is no pruned model to compare with the dense one."
    what = _what_went(data.removed) if data.removed else ""
    parts = [f"{formats.count(dense.parameters)} → {formats.count(pruned.parameters)} parameters"]
    if dense.perplexity and pruned.perplexity:
        before = f" ({formats.perplexity(data.recovery.before)} before recovery)" if data.recovery else ""
        parts.append(f"perplexity {formats.perplexity(dense.perplexity)} → {formats.perplexity(pruned.perplexity)}{before}")
        headlines = [data.workload(phase) for phase in _phases()]
        parts += [_gain(workload, workload.speedup) for workload in headlines if workload and workload.speedup]
    warned = "".join(f"; {said}" for said in (worse_elsewhere(data.by_text), worse_late(data.by_text)) if said)
    return f"{data.model_source}{what}: {', '.join(parts)}{warned}."


def tiles(data: ReportData) -> tuple[Tile, ...]:
    """Parameters, checkpoint size, perplexity, prefill and decode; those that were not measured are left out."""
    dense, pruned = data.model("dense"), data.model("pruned")
    if dense is None or pruned is None:
        return ()
    found = [_tile("Parameters", dense.parameters, pruned.parameters, formats.count)]
    if dense.checkpoint_bytes and pruned.checkpoint_bytes:
        found.append(_tile("Checkpoint", dense.checkpoint_bytes, pruned.checkpoint_bytes, formats.size))
    if dense.perplexity and pruned.perplexity:
        found.append(_tile("Perplexity", dense.perplexity.value, pruned.perplexity.value, formats.plain))
        found += [_speed_tile(workload) for phase in _phases() if (workload := data.workload(phase))]
    return tuple(found)


def changed(measure: Measure) -> bool:
    """Whether a speed-up's interval lies wholly on one side of 1."""
    return measure.low is not None and measure.high is not None and (measure.low > 1 or measure.high < 1)


def speedup_cell(workload: WorkloadRow) -> Cell:
    """The speed-up with its interval; that there is none, where the control held; that nothing was shown, where it did not."""
    speedup = workload.speedup
    if speedup is None:
        return Cell(formats.NONE)
    bounds = formats.interval(speedup)
    if unresolved(workload):
        return Cell(UNRESOLVED, "quiet", detail=f"{formats.ratio(speedup.value)} {bounds}".rstrip())
    if not changed(speedup):
        return Cell("no measurable change", "quiet", detail=bounds)
    return Cell(formats.ratio(speedup.value), "good" if speedup.value > 1 else "bad", detail=bounds)


def unresolved(workload: WorkloadRow) -> bool:
    """Whether the speed-up proves nothing: the run's control did not hold, or there is no interval."""
    without = workload.speedup is not None and (workload.speedup.low is None or workload.speedup.high is None)
    return without or workload.verdict.startswith(UNRESOLVED)


def all_warnings(data: ReportData) -> tuple[str, ...]:
    """What every rendering warns of: the run's own warnings, and speeds that were not resolved.

    The second are no part of ``ReportData.warnings``, which the model card shows and which must be the same in every run.
    """
    return (*data.warnings, *busy_warning(data.workloads))


def busy_warning(workloads: Iterable[WorkloadRow]) -> Iterator[str]:
    """What to do where speeds were not resolved; nothing where all were."""
    doubtful = [workload for workload in workloads if unresolved(workload)]
    if not doubtful:
        return
    off = [abs(workload.control.value - 1) for workload in doubtful if workload.control]
    why = f": dense differed from itself by up to {max(off):.1%}" if off else ""
    named = ", ".join(f"{workload.phase} of {workload.name}" for workload in doubtful)
    yield (
        f"Not resolved is the speed of {named}{why}. Time it again when nothing else runs: with benchmark.rounds: 100 and a larger "
        "benchmark.most_seconds the same command measures anew."
    )


def _phases() -> tuple[Phase, Phase]:
    return "prefill", "decode"


def _tile(label: str, before: float, after: float, show: formats.Show) -> Tile:
    return Tile(label, show(before), show(after), formats.change(before, after))


def _speed_tile(workload: WorkloadRow) -> Tile:
    before, after = formats.duration(workload.dense.value), formats.duration(workload.pruned.value)
    return Tile(workload.phase.capitalize(), before, after, speedup_cell(workload).whole)


def _gain(workload: WorkloadRow, speedup: Measure) -> str:
    if unresolved(workload):
        return f"{workload.phase} speed {UNRESOLVED}"
    if not changed(speedup):
        return f"{workload.phase} without measurable change"
    return f"{workload.phase} {formats.ratio(speedup.value)} as fast {formats.interval(speedup)}"


def _what_went(removed: Removed) -> str:
    named = (
        (removed.experts or 0.0, "its experts"),
        (removed.ffn_channels, "its FFN channels"),
        (removed.kv_groups, "its KV groups"),
        (removed.blocks, "its blocks"),
        (removed.residual_channels, "its residual channels"),
    )
    went = [f"{formats.percent(share, 0)} of {what}" for share, what in named if share > 0]
    return f" without {' and '.join(went)}" if went else ""
