"""What a target bounds: measures that add up over a model's sublayers, and how much of each may be left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.obstacles import check_timed
from pipeline.common.errors import TrimlineError
from pipeline.prune.consumer import Consumer
from pipeline.prune.recipe import Target

MILLI = 1e-3
TIME, PARAMETERS, FLOPS, MEMORY = "latency_ms", "parameters", "flops", "memory"
SPEEDUP = "speedup"  # states a bound of time too


@dataclass(frozen=True)
class BoundedCost:
    """Something that a model costs: a part that no size changes, a part for every sublayer, and for what a block carries.

    Attributes:
        fixed: what stands beside the blocks.
        sublayer: with so many units.
        carried: of a block without units.
    """

    fixed: float
    sublayer: Callable[[Sublayer, int], float]
    carried: Callable[[BlockShape], float] = lambda _: 0.0

    def whole(self, geometry: Geometry) -> float:
        """Of a model."""
        units = sum(self.sublayer(kind, block.units(kind)) for block in geometry.blocks for kind in Sublayer)
        return self.fixed + units + sum(self.carried(replace(block, ffn=0, kv_groups=0)) for block in geometry.blocks)


def measures(target: Target, dense: Geometry, consumer: Consumer) -> dict[str, BoundedCost]:
    """Every measure that the target bounds, by its name in the recipe; time in milliseconds.

    Raises:
        TrimlineError: time is asked for without a table, or memory in a precision whose bytes are not known beforehand.
    """
    found: dict[str, BoundedCost] = {}
    if target.is_timed:
        found[TIME] = _time(target, dense, consumer)
    if target.parameters is not None:
        found[PARAMETERS] = _counted(Geometry.total_parameters, dense)
    if target.flops is not None:
        found[FLOPS] = _counted(lambda geometry: geometry.decoder_flops(target.context), dense)
    if target.memory is not None:
        found[MEMORY] = _memory(target, dense, consumer)
    return found


def bounds(target: Target, dense: Geometry, consumer: Consumer) -> dict[str, float]:
    """The most that each measure may be."""
    found = {}
    for name, measure in measures(target, dense, consumer).items():
        whole = measure.whole(dense)
        if name == TIME:
            asked = [target.latency_ms] if target.latency_ms is not None else []
            found[name] = min([*asked, *([whole / target.speedup] if target.speedup is not None else [])])
        else:
            stated = getattr(target, name)
            found[name] = stated * whole if stated <= 1 else stated
    return found


def part_of(target: Target, part: float, start: Geometry, dense: Geometry, consumer: Consumer) -> Target:
    """The target of a shot: every bound this part of the way from what ``start`` has to what is wanted, in absolute numbers.

    The last shot's is the target itself.
    """
    if part == 1:
        return target
    now = {name: measure.whole(start) for name, measure in measures(target, dense, consumer).items()}
    wanted = bounds(target, dense, consumer)
    between = {name: now[name] + part * (min(wanted[name], now[name]) - now[name]) for name in now}
    return target.model_copy(update={"speedup": None} | between)


@dataclass(frozen=True)
class _Term:
    """One key of a target.

    Attributes:
        key, asked: as the target states it.
        reached: what the nearest model has, in the same unit.
        missed: whether the nearest model is on the wrong side.
        shortfall: a sentence that says both.
    """

    key: str
    asked: float
    reached: float
    missed: bool
    shortfall: str

    @property
    def nearest(self) -> str:
        """What can be asked for instead, rounded to the side that can be had."""
        return f"{self.key} {_down(self.reached) if self.key == SPEEDUP else _up(self.reached)}"


def infeasible(target: Target, smallest: Geometry, dense: Geometry, consumer: Consumer, rule: str) -> TrimlineError:
    """What of a target cannot be met, and the nearest that can.

    One model is the nearest to all bounds at once: with what it misses asked for as it has it, and the rest as it was, it
    meets the target.

    Args:
        smallest: the model with the smallest sizes that are allowed; every measure is least there.
        rule: who shares the target out, for the sentence.
    """
    terms = [term for name, measure in measures(target, dense, consumer).items() for term in _terms(name, measure, target, smallest, dense)]
    missed = [term for term in terms if term.missed]
    kept = [f"{term.key} {term.asked:.15g}" for term in terms if not term.missed]
    nearest = " and ".join(term.nearest for term in missed)
    together = ", to be had together" if len(terms) > 1 else ""
    beside = f" with {' and '.join(kept)}" if kept else ""
    empty = "" if target.allow_empty else ", let blocks lose whole sublayers (allow_empty: true)"
    return TrimlineError(
        f"The target cannot be met by {rule}: {'; '.join(term.shortfall for term in missed)}.",
        f"Ask for {nearest}{together}{beside}{empty}, or give a smaller round_to.",
    )


def demand_uncut(target: Target, geometry: Geometry, dense: Geometry) -> None:
    """Targets are stated for models whose residual stream is whole.

    Raises:
        TrimlineError: an earlier step made it narrower.
    """
    if geometry.hidden != dense.hidden:
        raise TrimlineError("A target follows a step that narrows the residual stream, and its measures are not known there.",
                            "Put the step with the target first, or state a budget.")  # fmt: skip


def _time(target: Target, dense: Geometry, consumer: Consumer) -> BoundedCost:
    check_timed(dense.family)
    if consumer.table is None:
        raise TrimlineError("The target is one of time, and there is no latency table.", "Use `trimline run`, which measures one first.")
    consumer.table.check(dense)
    times = consumer.table.times(target.workload)
    return BoundedCost(times.fixed / MILLI, lambda kind, units: times.sublayer(kind, units) / MILLI)


def _memory(target: Target, dense: Geometry, consumer: Consumer) -> BoundedCost:
    """Weights, and the keys and values of ``context`` tokens of one sequence."""
    width, cache = consumer.weight_bytes, consumer.cache_bytes
    if width is None:
        raise TrimlineError("A target of memory is stated for an export whose weights have several widths.",
                            "Export in fp32, fp16 or bf16, or state a target of parameters.")  # fmt: skip
    return _counted(lambda geometry: geometry.total_parameters() * width + geometry.cache_numbers(target.context) * cache, dense)


def _counted(of: Callable[[Geometry], float], dense: Geometry) -> BoundedCost:
    """A count that adds up over sublayers, as every count of a geometry does."""
    fixed = of(dense.with_blocks(()))

    def sublayer(kind: Sublayer, units: int) -> float:
        return of(dense.with_blocks((BlockShape.alone(kind, units),))) - fixed

    return BoundedCost(fixed, sublayer, lambda block: of(dense.with_blocks((block,))) - fixed)


def _terms(name: str, measure: BoundedCost, target: Target, smallest: Geometry, dense: Geometry) -> Iterator[_Term]:
    """The keys that state one bound: two may state that of time."""
    least, whole = measure.whole(smallest), measure.whole(dense)
    if name == TIME and target.speedup is not None:
        words = f"{target.workload} would be {whole / least:.3g} times as fast at most, and {target.speedup:g} is asked for"
        yield _Term(SPEEDUP, target.speedup, whole / least, least > whole / target.speedup, words)
    stated = getattr(target, name)
    if stated is not None:
        share = name != TIME and stated <= 1
        what, unit = (f"the {target.workload} latency", " ms") if name == TIME else (name, "")
        wanted = stated * whole if share else stated
        words = f"{what} is {_written(least)}{unit} at least, and {_written(wanted)}{unit} is asked for"
        yield _Term(name, stated, least / whole if share else least, least > wanted, words)


def _written(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _down(value: float) -> str:
    return f"{int(value * 1000) / 1000:g}"


def _up(value: float) -> str:
    return f"{math.ceil(value)}" if value > 1000 else f"{math.ceil(value * 1000) / 1000:g}"
