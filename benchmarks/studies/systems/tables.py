"""The results command's tables, from row records and speeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.formulas.statistics import Difference, Ratio, paired_difference
from benchmarks.recipe import PHASES, Phase
from benchmarks.results.cells import interval, mebibytes, ratio
from benchmarks.studies.pages import markdown_table
from benchmarks.studies.systems.systems import percent

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AgainstDense:
    """How many times as fast as dense a row is in one phase, and whether dense agreed with itself."""

    speedup: Ratio
    control_holds: bool


ByPhase = Mapping[Phase, AgainstDense]
Speed = Mapping[str, ByPhase]  # by row name
COLUMNS = (
    "asked",
    "system",
    "its own definition",
    "decoder removed",
    "parameters",
    "perplexity",
    "÷ dense",
    "prefill speed-up",
    "decode speed-up",
    "pruning, CPU s (wall)",
    "peak MiB",
)
NOT_RESOLVED = "not resolved"
FEW_SYSTEMS, FEW_AT = ("dense", "shortgpt", "flap", "cfsp", "llm_surgeon", "trimline"), 0.3  # README's rows: decoder fraction removed
FEW_COLUMNS = ("system", "parameters", "perplexity", "÷ dense", "prefill speed-up", "decode speed-up")


def results_table(records: Sequence[Record], speed: Speed) -> str:
    """One line per row; the dense model's comes first."""
    dense = next((record for record in records if record["system"] == "dense" and not record.get("failure")), None)
    return markdown_table(list(COLUMNS), [line(record, dense, speed) for record in records])


def few_rows(records: Sequence[Record], speed: Speed) -> str:
    """The table for a front page: ``FEW_SYSTEMS`` at one size, in ``FEW_COLUMNS``; a system without such a row is left out."""
    dense = next((record for record in records if record["system"] == "dense" and not record.get("failure")), None)
    wanted = [record for record in records if record["name"] in {"dense", *(f"{name}-{FEW_AT:g}" for name in FEW_SYSTEMS)}]
    rows = [dict(zip(COLUMNS, line(record, dense, speed), strict=True)) for record in wanted if not record.get("failure")]
    return markdown_table(list(FEW_COLUMNS), [[row[column] for column in FEW_COLUMNS] for row in rows])


def line(record: Record, dense: Record | None, speed: Speed) -> list[str]:
    """A row's cells; a failed row's say why."""
    start = [record["size"], record["title"]]
    if record.get("failure"):
        return [*start, record["failure"].replace("|", "\\|"), *[""] * (len(COLUMNS) - 3)]
    removed, cost = record["removed"], record["cost"]
    gone = percent(removed["decoder_parameters"]) if "zeros" not in record else f"{percent(record['zeros'])} zeros"
    return [
        *start,
        record["own"] or "–",
        gone if cost else "–",
        f"{record['parameters'] / 1e6:.1f} M",
        with_error(record["perplexity"]),
        against_dense(record, dense),
        *(speed_cell(record, speed, phase) for phase in PHASES),
        f"{cost['processor']:.0f} ({cost['wall']:.0f})" if cost else "–",
        mebibytes(cost["peak_anonymous"]) if cost else "–",
    ]


def named(record: Record) -> str:
    """``LLM Surgeon, 30 %``."""
    return f"{record['title']}, {record['size']}"


def with_error(perplexity: Record) -> str:
    """``20.79 ± 0.85``, the standard error over windows."""
    error = perplexity["standard_error"]
    return number(perplexity["perplexity"]) + ("" if error is None else f" ± {number(error)}")


def number(value: float) -> str:
    """Two decimals below 1000, three digits from there."""
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def against_dense(record: Record, dense: Record | None) -> str:
    """Perplexity over dense's, with its interval from the windows' differences in loss."""
    if dense is None or record is dense:
        return "–"
    found = loss_difference(dense, record)
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return ratio(mean, low, high) if high < 1000 else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def loss_difference(first: Record, second: Record) -> Difference:
    """Loss of the second minus the first's, nats per token, paired by window."""
    return paired_difference(*(record["perplexity"]["window_losses"] for record in (first, second)))


def speed_cell(record: Record, speed: Speed, phase: Phase) -> str:
    """A speed-up with its interval, or why there is none."""
    if record["system"] == "dense":
        return "1"
    if "zeros" in record:
        return "same shapes"
    if record.get("untimed"):
        return "failed, see below"
    found = speed.get(record["name"], {}).get(phase)
    if found is None:
        return "not timed"
    return interval(found.speedup) + ("" if found.control_holds else f" ({NOT_RESOLVED})")
