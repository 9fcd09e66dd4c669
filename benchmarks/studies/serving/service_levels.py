"""Whether a served model answers within the bars that MLPerf sets its servers. A figure made here is no MLPerf result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.formulas.statistics import summarise
from benchmarks.studies.pages import markdown_table
from benchmarks.studies.serving.request import RequestSample

NOTE = (
    "Bars on p99, as MLPerf Inference sets them for its servers of these models; no MLPerf result. "
    "within both: share of the requests, failed ones included, whose own TTFT and TPOT are within the bars."
)


@dataclass(frozen=True)
class Bars:
    """Seconds that p99 may take."""

    name: str
    ttft: float
    tpot: float


BARS = (
    Bars("llama3.1-8b", 2.0, 0.1),
    Bars("llama3.1-8b interactive", 0.5, 0.03),
    Bars("llama2-70b", 2.0, 0.2),
    Bars("llama2-70b interactive", 0.45, 0.04),
)


@dataclass(frozen=True)
class Level:
    """One run against one pair of bars.

    Attributes:
        ttft, tpot: p99 in seconds; None below 100 samples.
        samples: of the shorter of both.
        within: share of requests within both bars; a request of one token has no TPOT, and counts by its TTFT.
        met: None where a p99 is not known.
    """

    bars: Bars
    ttft: float | None
    tpot: float | None
    samples: int
    within: float
    met: bool | None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def level(samples: Sequence[RequestSample], failures: int, bars: Bars) -> Level:
    """How a run of at least one answer stands to a pair of bars. A request that failed meets no bar."""
    first, per_token = [sample.ttft for sample in samples], [sample.tpot for sample in samples if sample.tpot is not None]
    inside = sum(sample.ttft <= bars.ttft and (sample.tpot is None or sample.tpot <= bars.tpot) for sample in samples)
    ttft = summarise(first).p99
    tpot = summarise(per_token).p99 if per_token else None
    known = None if ttft is None or tpot is None else ttft <= bars.ttft and tpot <= bars.tpot and not failures
    return Level(bars, ttft, tpot, min(len(first), len(per_token)), inside / (len(samples) + failures), known)


def levels(samples: Sequence[RequestSample], failures: int) -> list[Level]:
    """One per pair of bars; none where nothing was answered."""
    return [level(samples, failures, bars) for bars in BARS] if samples else []


def table(found: Sequence[Level]) -> str:
    """Markdown, in milliseconds."""
    head = ["bars of", "TTFT bar ms", "p99 TTFT ms", "TPOT bar ms", "p99 TPOT ms", "within both", "met"]
    words = {True: "yes", False: "no"}
    rows = [
        [
            *(one.bars.name, f"{1e3 * one.bars.ttft:g}", _cell(one.ttft, one.samples)),
            *(f"{1e3 * one.bars.tpot:g}", _cell(one.tpot, one.samples), f"{one.within:.1%}"),
            f"n/a (n={one.samples})" if one.met is None else words[one.met],
        ]
        for one in found
    ]
    return f"{markdown_table(head, rows)}\n\n{NOTE}"


def _cell(seconds: float | None, samples: int) -> str:
    return f"n/a (n={samples})" if seconds is None else f"{1e3 * seconds:.2f}"
