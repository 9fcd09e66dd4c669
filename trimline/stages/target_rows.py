"""What a report says of targets: asked for, predicted, reached, and in how many rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.results.document import Results
from benchmarks.results.target import Judgement, judge
from pipeline.architecture.geometry import Geometry
from pipeline.prune.allocation.targets import TIME, bounds, measures
from pipeline.prune.consumer import Consumer
from pipeline.prune.recipe import PruneSlice, Target
from trimline.reporting.data import RoundRow, TargetRow
from trimline.stages.rounds import Round, measured, stated, timed_step

UNITS = {"parameters": "", "flops": "", "memory": " bytes"}


def target_rows(recipe: PruneSlice, dense: Geometry, result: Geometry, consumer: Consumer, rounds: Sequence[Round]) -> Iterator[TargetRow]:
    """Counts first, of every step that bounds them; then what was measured, in the best round."""
    for step in recipe.steps:
        if step.target:
            yield from _counted(step.target, dense, result, consumer)
    if rounds:
        best = min(rounds, key=lambda one: one.distance)
        yield from map(_judged, best.judgements)


def speed_rows(recipe: PruneSlice, results: Results, model: str) -> Iterator[TargetRow]:
    """What the last target of time became of, by a benchmark's results; nothing where no target speaks of time."""
    place = timed_step(recipe)
    target = recipe.steps[place].target if place is not None else None
    yield from map(_judged, judge(results, target, model) if target else ())


def round_rows(rounds: Sequence[Round], dense: Geometry, consumer: Consumer) -> Iterator[RoundRow]:
    """Every round: what the allocation was given, what the table predicted for its sizes, what was measured."""
    best = min(rounds, key=lambda one: one.distance, default=None)
    for number, one in enumerate(rounds, start=1):
        result = one.selection.geometry(dense)
        for found in one.judgements:
            assert consumer.table is not None
            seconds = [consumer.table.predict(shapes, found.workload) for shapes in (dense, result)]
            given = getattr(one.given, found.key)
            predicted = f"{seconds[0] / seconds[1]:.3f}×" if found.key == "speedup" else f"{1e3 * seconds[1]:.4g} ms"
            unit = "×" if found.key == "speedup" else " ms"
            yield RoundRow(number, f"{given:.4g}{unit}", predicted, measured(found), one is best)


def _judged(found: Judgement) -> TargetRow:
    return TargetRow(stated(found), measured(found), found.reason)


def _counted(target: Target, dense: Geometry, result: Geometry, consumer: Consumer) -> Iterator[TargetRow]:
    asked = target.model_copy(update={"speedup": None, "latency_ms": None})
    limits = bounds(asked, dense, consumer)
    for name, measure in measures(asked, dense, consumer).items():
        assert name != TIME
        reached, unit = measure.whole(result), UNITS[name]
        outcome = "met" if reached <= limits[name] else f"missed: {reached / limits[name] - 1:.1%} too many"
        yield TargetRow(f"at most {limits[name]:,.0f}{unit or ' ' + name}", f"{reached:,.0f}", outcome)
