"""What a benchmark's document says of energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.results.document import ModelRecord, Results


def answers(models: Mapping[str, ModelRecord]) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """Parts of every counter that answered for a model, and why the others did not."""
    told = [model.energy for model in models.values() if model.energy is not None]
    counters: dict[str, Sequence[str]] = {name: parts for found in told for name, parts in found.counters.items()}
    return counters, {name: why for found in told for name, why in found.refused.items() if name not in counters}


def lines(results: Results) -> dict[str, str]:
    """Name and value: joules per token, or why there are none."""
    counters, refused = answers(results.models)
    found = {f"energy, {name}": f"no counter answered ({why})" for name, why in refused.items()}
    for row in results.timings:
        for name, summary in row.joules_per_token.items():
            parts = " + ".join(counters.get(name, ()))
            key = f"energy, {name} ({parts}), {row.workload} {row.phase}"
            found[key] = "; ".join([*([found[key]] if key in found else []), f"{row.model} {summary.p50:.3g} J/token"])
    return found
