"""Whether a measured result is as fast as it was to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.formulas.statistics import by_opening, control_holds, paired_ratio, typical
from benchmarks.recipe import LEAST_ROUNDS, PHASES, BenchmarkSlice, Workload
from benchmarks.results.document import Results
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.common.errors import TrimlineError
from pipeline.prune.recipe import Target

BAND = 0.03  # how far from the target the measured interval may reach
MILLI = 1e3
Outcome = Literal["met", "missed", "not resolved"]


@dataclass(frozen=True)
class Judgement:
    """What was measured of one thing that a target asks for.

    Attributes:
        key: ``speedup`` (a ratio, higher is faster) or ``latency_ms`` (lower is faster).
        workload: of which.
        asked: the target's value.
        value, low, high: measured, with its 95 % confidence interval.
        control_holds: dense agreed with itself, over enough rounds.
    """

    key: str
    workload: str
    asked: float
    value: float
    low: float
    high: float
    control_holds: bool

    @property
    def outcome(self) -> Outcome:
        """Met where the whole interval is within the band, missed where none of it is."""
        if not self.control_holds:
            return "not resolved"
        least, most = self.asked * (1 - BAND), self.asked * (1 + BAND)
        if least <= self.low and self.high <= most:
            return "met"
        return "missed" if self.high < least or self.low > most else "not resolved"

    @property
    def is_outside(self) -> bool:
        """Whether the measurement counts, and shows that another try would come nearer: what it cannot tell from noise would only add some."""
        return self.control_holds and abs(self.value / self.asked - 1) > BAND and not self.low <= self.asked <= self.high

    @property
    def reason(self) -> str:
        """The outcome in words, with by how much."""
        off = self.value / self.asked - 1
        slower = (off < 0) == (self.key == "speedup")
        if self.outcome == "met":
            return "met"
        if self.outcome == "missed":
            return f"missed: {abs(off):.1%} {'slower' if slower else 'faster'} than asked"
        why = (
            "the interval reaches out of the band" if self.control_holds else f"dense did not agree with itself over {LEAST_ROUNDS} rounds"
        )
        return f"not resolved: {why}"


def judge(results: Results, target: Target, model: str) -> tuple[Judgement, ...]:
    """What a benchmark's results say of the speeds that a target asks for; empty where it asks for none.

    Raises:
        TrimlineError: the workload was not timed.
    """
    each = results.asked.rounds_per_opening
    seconds = {name: series(results, target.workload, name) for name in (DENSE, CONTROL, model)} if target.is_timed else {}
    holds = bool(seconds) and control_holds(paired_ratio(seconds[DENSE], seconds[CONTROL], each=each))
    found = []
    if target.speedup is not None:
        ratio = paired_ratio(seconds[DENSE], seconds[model], each=each)
        found.append(Judgement("speedup", target.workload, target.speedup, ratio.value, ratio.low, ratio.high, holds))
    if target.latency_ms is not None:
        own = typical(by_opening(seconds[model], each))
        found.append(
            Judgement("latency_ms", target.workload, target.latency_ms, MILLI * own.value, MILLI * own.low, MILLI * own.high, holds)
        )
    return tuple(found)


def timed_workload(recipe: BenchmarkSlice, name: str) -> Workload:
    """The workload that a target speaks of: the first that has the phase, or the one of that name.

    Raises:
        TrimlineError: the recipe times none.
    """
    for workload in recipe.workloads:
        if name in (workload.name, "prefill") or (name == "decode" and workload.steps):
            return workload
    known = [*PHASES, *(workload.name for workload in recipe.workloads)]
    raise TrimlineError(f"The target speaks of the workload {name!r}, which the recipe does not time.",
                        f"Say one of {', '.join(known)}, or add it to benchmark.workloads (decode needs an output of two or more).")  # fmt: skip


def series(results: Results, name: str, model: str) -> list[float]:
    """Seconds of every round: of a prefill, of a decoding step, or of a whole request."""
    samples = results.samples[timed_workload(results.asked, name).name][model]
    phase = next((phase for phase in PHASES if phase == name), None)
    return samples.seconds(phase) if phase else samples.whole_seconds()
