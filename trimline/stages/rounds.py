"""Prune, measure, and once more where the measured speed is not the one that was asked for.

A latency table predicts within a few per cent. What it was wrong by is known once the result is measured; the target that
the allocation is given is then set against it, at most twice. The round whose speed is nearest to the target is what counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.results.document import read
from benchmarks.results.target import Judgement, judge, timed_workload
from benchmarks.timing.subject import BYTES
from exporters.recipe import ExportSlice
from pipeline.artefacts.artefact import Artefact
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.prune.consumer import WIDTHS, Consumer, stated_dtype
from pipeline.prune.latency import LatencyTable
from pipeline.prune.recipe import PruneSlice, PruneStep, Target
from trimline.recipe import Recipe
from trimline.stages.names import PLAN, PRUNED, TIMINGS, Name

AGAIN = 2  # rounds after the first, at most
FULL = {"fp32", "fp16", "bf16"}  # precisions whose numbers are all of one width


class Rounding(Protocol):
    """What a run offers to be gone through again."""

    recipe: Recipe
    events: Events
    done: dict[Name, Artefact]

    def prune(self, steps: PruneSlice) -> None: ...

    def after_prune(self) -> None: ...


@dataclass(frozen=True)
class Round:
    """One way through the stages from prune to benchmark.

    Attributes:
        given: the target that the allocation was given.
        judgements: of the recipe's target, on what was measured.
        selection: what stays.
        done: every artefact as it was then.
    """

    given: Target
    judgements: tuple[Judgement, ...]
    selection: Selection
    done: dict[Name, Artefact]

    @property
    def distance(self) -> tuple[bool, float]:
        """How far from the target; a measurement that does not count is further than any that does."""
        return (
            not all(found.control_holds for found in self.judgements),
            max(abs(math.log(found.value / found.asked)) for found in self.judgements),
        )


def until_met(run: Rounding) -> tuple[Round, ...]:
    """Goes through the stages once, and again while the measured speed is out of the target's band; the best round stays.

    Returns:
        Every round, in order; none where no target speaks of time. ``run.done`` ends as the best round's.

    Raises:
        TrimlineError: the first round failed.
    """
    place, wanted = timed_step(run.recipe.prune), run.recipe.prune
    run.prune(wanted)
    run.after_prune()
    if place is None:
        return ()
    rounds = [_round(run, wanted, place)]
    while len(rounds) <= AGAIN and any(found.is_outside for found in rounds[-1].judgements):
        wanted = corrected(wanted, place, rounds[-1].judgements)
        if not _pruned_differently(run, wanted, rounds):
            break
        run.after_prune()
        rounds.append(_round(run, wanted, place))
    best = min(rounds, key=lambda one: one.distance)
    run.done.update(best.done)
    for number, one in enumerate(rounds, start=1):
        others = {name: made for name, made in one.done.items() if one is not best and made.key != best.done[name].key}
        run.done.update({name.of_round(number): made for name, made in others.items()})
    _say(run.events, rounds, best)
    return tuple(rounds)


def timed_step(recipe: PruneSlice) -> int | None:
    """The last step whose target speaks of time: what is measured in the end is judged by it."""
    return next((place for place, step in reversed(list(enumerate(recipe.steps))) if step.target and step.target.is_timed), None)


def corrected(wanted: PruneSlice, place: int, judgements: tuple[Judgement, ...]) -> PruneSlice:
    """The same steps with every time in a target multiplied by asked / measured."""
    step, target = wanted.steps[place], wanted.steps[place].target
    assert target is not None
    given = {found.key: getattr(target, found.key) * found.asked / found.value for found in judgements}
    if "speedup" in given:
        given["speedup"] = max(1.0, given["speedup"])
    changed = step.model_copy(update={"target": target.model_copy(update=given)})
    return wanted.model_copy(update={"steps": (*wanted.steps[:place], changed, *wanted.steps[place + 1 :])})


def consumer_of(recipe: Recipe, table: Path | None, config: Mapping[str, Any]) -> Consumer:
    """What runs the result: its latency table, where one was measured, and the bytes of its numbers.

    Args:
        recipe: it says what is exported; where nothing is, numbers are as wide as the checkpoint's.
        table: folder of the latency table.
        config: the dense model's ``config.json``; not read where something is exported.
    """
    weight, cache = bytes_of(recipe.export) if recipe.export else [float(WIDTHS[stated_dtype(config)])] * 2
    return Consumer(None if table is None else LatencyTable.read(table), weight, cache)


def bytes_of(export: ExportSlice) -> tuple[float | None, float]:
    """Of one weight and of one number in the cache; None for weights of several widths."""
    widths = BYTES[export.precision]
    return widths.weight if export.precision in FULL else None, widths.activation


def tile_of(recipe: PruneSlice) -> int:
    """Of the widths that a latency table is measured at."""
    return min(step.round_to for step in recipe.steps if step.target and step.target.is_timed)


def demand_timed(recipe: Recipe) -> None:
    """Whether every target speaks of something that is timed.

    Raises:
        TrimlineError: it speaks of a workload that the recipe does not time.
    """
    for target in _targets(recipe.prune.steps):
        if target.is_timed:
            timed_workload(recipe.benchmark, target.workload)


def _targets(steps: tuple[PruneStep, ...]) -> list[Target]:
    return [step.target for step in steps if step.target]


def _round(run: Rounding, wanted: PruneSlice, place: int) -> Round:
    asked, given = run.recipe.prune.steps[place].target, wanted.steps[place].target
    assert asked is not None
    assert given is not None
    found = judge(read(run.done[TIMINGS].folder), asked, str(PRUNED))
    return Round(given, found, _selection(run), dict(run.done))


def _pruned_differently(run: Rounding, wanted: PruneSlice, rounds: list[Round]) -> bool:
    """Prunes to the corrected target; says why where that is no use."""
    try:
        run.prune(wanted)
    except TrimlineError as error:
        run.events.note(f"no further round: {error}")
        return False
    if _selection(run) in [one.selection for one in rounds]:
        run.events.note("no further round: there are no sizes nearer to the target")
        return False
    return True


def _selection(run: Rounding) -> Selection:
    return Plan.read(run.done[PLAN].folder).selection


def _say(events: Events, rounds: list[Round], best: Round) -> None:
    for found in best.judgements:
        events.note(f"target {stated(found)}: measured {measured(found)}; {found.reason}{_after(len(rounds))}")


def _after(count: int) -> str:
    return "" if count == 1 else f", after {count} rounds"


def stated(found: Judgement) -> str:
    """What was asked for: ``decode 1.4 times as fast``, ``prefill in 80 ms``."""
    return f"{found.workload} {found.asked:g} times as fast" if found.key == "speedup" else f"{found.workload} in {found.asked:g} ms"


def measured(found: Judgement) -> str:
    """What came out, with its interval."""
    unit = "×" if found.key == "speedup" else " ms"
    show: Callable[[float], str] = lambda value: f"{value:.3f}" if found.key == "speedup" else f"{value:.4g}"  # noqa: E731
    return f"{show(found.value)}{unit} ({show(found.low)} to {show(found.high)})"
