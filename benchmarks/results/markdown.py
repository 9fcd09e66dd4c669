"""``results.md``: the tables of a benchmark, from the document that ``results.json`` holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.formulas.statistics import Summary
from benchmarks.machine.environment import software
from benchmarks.results.cells import interval, mebibytes, ratio, rounds_of, table
from benchmarks.results.document import ModelRecord, PairedComparison, Results, Timing
from benchmarks.results.energy import answers

Models = Mapping[str, ModelRecord]
# trtexec's names, and ours in the record; medians over the rounds.
PART_TITLES = {"enqueue": "enqueue", "H2D": "h2d", "GPU compute": "compute", "D2H": "d2h", "host latency": "host_latency"}


def render(results: Results) -> str:
    """Markdown. A model without a perplexity is named, not printed: speed alone says little about a pruned model."""
    models = results.models
    shown = {name: model for name, model in models.items() if model.perplexity is not None}
    hidden = [name for name in models if name not in shown]
    timed = [row for row in results.timings if row.model in shown]
    sections = [
        "# Benchmark",
        *([f"Not printed, for want of a perplexity: {', '.join(hidden)}."] if hidden else []),
        "## Against dense",
        comparisons([row for row in results.comparisons if row.model in shown], models),
        "## Times",
        timings(timed, models),
        "## Energy",
        energy(timed, models),
        "## Memory and cold start",
        memory(shown),
        "## This machine",
        machine(results),
        "## What the names mean",
        "\n".join(f"- **{name}**: {formula}" for name, formula in results.formulas.items()),
    ]
    return "\n\n".join(sections) + "\n"


def comparisons(rows: Sequence[PairedComparison], models: Models) -> str:
    """Speedup, control, verdict and realised gain of every model on every workload."""
    columns: dict[str, Callable[[PairedComparison], str]] = {
        "workload": lambda row: row.workload,
        "metric": lambda row: row.phase,
        "model": lambda row: row.model,
        "perplexity": lambda row: perplexity(models[row.model]),
        "speed-up": lambda row: interval(row.speedup),
        "of medians": lambda row: ratio(row.speedup.of_medians, row.speedup.of_medians_low, row.speedup.of_medians_high),
        "dense again": lambda row: interval(row.control),
        "rounds": lambda row: rounds_of(row.speedup),
        "verdict": lambda row: row.verdict,
        "allowed": lambda row: f"{row.allowed:.3f}",
        "realised gain": lambda row: interval(row.realised_gain),
    }
    return table(columns, rows)


@dataclass(frozen=True)
class _Shown:
    """A row of the table of times: a phase's, or that of all gaps or of whole requests, which have no ceiling."""

    phase: str
    timing: Timing
    seconds: Summary
    tokens_per_second: float
    mbu: float | None
    mfu: float | None


def timings(rows: Sequence[Timing], models: Models) -> str:
    """Raw statistics in milliseconds, throughput, and how near to the ceilings."""
    statistics = {"mean": "mean", "min": "minimum", "max": "maximum", "std": "deviation"}
    percentiles = {name: name for name in ("p50", "p75", "p90", "p95", "p99")}
    named = _named(models)
    columns: dict[str, Callable[[_Shown], str]] = {
        **{title: partial(lambda cell, row: cell(row.timing), cell) for title, cell in named.items()},
        "metric": lambda row: row.phase,
        "n": lambda row: str(row.seconds.n),
        **{f"{title} ms": _milliseconds(key) for title, key in (statistics | percentiles).items()},
        "tokens/s": lambda row: f"{row.tokens_per_second:.1f}",
        "MBU": lambda row: _share(row.mbu),
        "MFU": lambda row: _share(row.mfu),
        "others' cores": lambda row: f"{row.timing.others.p50:.2f}" if row.timing.others else "n/a",
    }
    found = table(columns, [shown for row in rows for shown in _whole(row)])
    return "\n\n".join([found, *engine_parts(rows, models)])


def engine_parts(rows: Sequence[Timing], models: Models) -> Iterator[str]:
    """What a call of an engine is made of, and how TensorRT was run; nothing where no engine was timed."""
    told = [row for row in rows if row.parts]
    if not told:
        return
    columns: dict[str, Callable[[Timing], str]] = {
        **_named(models),
        **{f"{title} ms": _part(name) for title, name in PART_TITLES.items()},
        "queries/s": lambda row: f"{row.queries_per_second:.1f}",
    }
    yield table(columns, told)
    for name in dict.fromkeys(row.model for row in told):
        settings = [f"{key.replace('_', ' ')}: {_word(value)}" for key, value in (models[name].engine_settings or {}).items()]
        yield f"{name} in TensorRT: {'; '.join(settings)}."


def _named(models: Models) -> dict[str, Callable[[Timing], str]]:
    """The columns that say which samples a row is of."""
    return {
        "workload": lambda row: row.workload,
        "metric": lambda row: row.phase,
        "model": lambda row: row.model,
        "perplexity": lambda row: perplexity(models[row.model]),
        "n": lambda row: str(row.seconds.n),
    }


def energy(rows: Sequence[Timing], models: Models) -> str:
    """Joules per token by every counter that answered, and why the others did not."""
    counters, refused = answers(models)
    notes = [f"No counter answered for the {name}: {why}." for name, why in refused.items()]
    if not counters:
        return "\n\n".join(notes or ["No counter was asked."])
    columns: dict[str, Callable[[Timing], str]] = {
        **_named(models),
        **{f"J/token, {name} ({' + '.join(parts)})": _joules(name) for name, parts in counters.items()},
    }
    return "\n\n".join([table(columns, rows), *notes])


def memory(models: Models) -> str:
    """What a process of each model holds, and how long it takes to its first answer."""
    columns: dict[str, Callable[[tuple[str, ModelRecord]], str]] = {
        "model": lambda item: item[0],
        "perplexity": lambda item: perplexity(item[1]),
        "parameters": lambda item: f"{item[1].parameters:,}",
        "weights MiB": lambda item: mebibytes(item[1].weight_file_bytes),
        "KV bytes per token": lambda item: f"{item[1].kv_bytes_per_token:,}",
        "peak MiB": lambda item: mebibytes(item[1].memory["peak"]),
        "before loading MiB": lambda item: mebibytes(item[1].memory["before_load"]),
        "anonymous MiB": lambda item: mebibytes(item[1].memory["anonymous"]),
        "GPU peak MiB": lambda item: mebibytes(item[1].memory.get("device_peak")),
        "load s": lambda item: f"{item[1].cold_start['load']:.2f}",
        "first request s": lambda item: f"{item[1].cold_start['first_request']:.2f}",
        "first requests s": lambda item: f"{item[1].first_requests['seconds']:.2f}",
    }
    if any(model.engine_build for model in models.values()):
        columns["engine build s"] = lambda item: f"{sum(found.values()):.1f}" if (found := item[1].engine_build) else "n/a"
    return table(columns, models.items())


def machine(results: Results) -> str:
    """The environment block and the two measured ceilings."""
    surroundings, ceilings = results.environment, results.ceilings
    load = surroundings["load_average"]
    facts: dict[str, str | None] = {
        "processor": f"{surroundings['processor']} ({', '.join(surroundings['flags'])})",
        "cores": f"{surroundings['cores']['logical']} logical, threads used {surroundings['threads']}",
        "memory": f"{mebibytes(surroundings['memory_bytes'])} MiB",
        "load average before and after": f"{load['before']:.2f}, {load['after']:.2f}",
        "reads from memory": f"{ceilings.bandwidth / 1e9:.1f} GB/s measured",
        f"multiplies {ceilings.multiplied}": f"{ceilings.rate / 1e9:.0f} GFLOP/s measured",
        "governor": surroundings["governor"],
        "clock after the timing": f"{mhz:.0f} MHz" if (mhz := surroundings.get("frequency_mhz")) else None,
        "power cap": f"{cap:g} W" if (cap := surroundings.get("power_cap_watts")) else None,
        "transparent huge pages": surroundings.get("huge_pages"),
        "GPU": "; ".join(surroundings["gpu"] or []) or None,
        "system": surroundings["system"],
        "versions": software(surroundings),
        "commit": surroundings["commit"],
        "hash of what was asked for": results.recipe_hash,
    }
    columns: dict[str, Callable[[tuple[str, str | None]], str]] = {
        "the run": lambda fact: fact[0],
        "value": lambda fact: fact[1] or "not told by this system",
    }
    return table(columns, facts.items())


def perplexity(model: ModelRecord) -> str:
    """Of a model that has one."""
    return f"{model.perplexity:.2f}"


def _milliseconds(key: str) -> Callable[[_Shown], str]:
    def cell(row: _Shown) -> str:
        value = getattr(row.seconds, key)
        return f"n/a (n={row.seconds.n})" if value is None else f"{value * 1e3:.2f}"

    return cell


def _part(name: str) -> Callable[[Timing], str]:
    return lambda row: f"{row.parts[name].p50 * 1e3:.3f}"


def _word(setting: object) -> str:
    return ("on" if setting else "off") if isinstance(setting, bool) else str(setting)


def _joules(counter: str) -> Callable[[Timing], str]:
    def cell(row: Timing) -> str:
        found = row.joules_per_token.get(counter)
        return "n/a" if found is None else f"{found.p50:.3g} ({found.minimum:.3g} to {found.maximum:.3g})"

    return cell


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _whole(row: Timing) -> Iterator[_Shown]:
    """A decode row is followed by the statistics of its pooled gaps, which are many enough for a p99, and of whole requests."""
    yield _Shown(row.phase, row, row.seconds, row.tokens_per_second, row.mbu, row.mfu)
    if row.gaps is not None and row.request is not None:
        yield _Shown("gaps", row, row.gaps, row.tokens_per_second, row.mbu, row.mfu)
        yield _Shown("request", row, row.request.seconds, row.request.tokens_per_second, None, None)
