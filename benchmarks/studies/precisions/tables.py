"""The tables of ``benchmarks.studies.precisions``, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.formulas.statistics import Ratio, control_holds, paired_ratio
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results.markdown import interval, machine, rounds_of
from benchmarks.results.target import series
from benchmarks.runtimes.llama_cpp import NO_LLAMA_CPP
from benchmarks.runtimes.names import Runtime
from benchmarks.studies.pages import markdown_table
from benchmarks.timing.timing import DENSE

BUILDER, OURS, ALL, LLAMA = "builder", "ours", "ours, all positions", "llama.cpp, Q4_1 (dense)"
PROMPT = Workload(prompt=512)
WORKLOADS = {"prefill": PROMPT, "decode": Workload(prompt=128, output=17)}
REALISED_BAR = 0.9
TIMED_IN: dict[Runtime, str] = {
    "onnxruntime": "Timed in ONNX Runtime's own session",
    "onnxruntime_genai": "Timed in onnxruntime-genai's own generator, where a prompt pass ends with the choice of its first token",
}
Results = Mapping[str, Any]


def document(results: Sequence[Results]) -> str:
    """Markdown: what was timed in, the three questions, a table each, and the machine; all results are of one runtime."""
    parts = [_timed_in(results[-1]), _as_fast_as_the_builder(results)]
    four = next((found for found in results if found["precision"] == "int4"), None)
    if four is not None:
        parts.append(_pruned_and_four_bits(four))
    if all(PROMPT.name in found["samples"] for found in results):
        parts.append(_one_position(results))
    return "\n\n".join([*parts, machine(results[-1])])


def _timed_in(found: Results) -> str:
    llama = " (llama.cpp's file in llama.cpp)" if any(LLAMA in samples for samples in found["samples"].values()) else ""
    return f"{TIMED_IN[BenchmarkSlice.model_validate(found['recipe']).runtime]}{llama}; perplexities are of the same files, whatever generates."


def _as_fast_as_the_builder(results: Sequence[Results]) -> str:
    rows = []
    for found in results:
        for row in _rows(found):
            if row["model"] in (OURS, ALL):
                both = (_perplexity(found, BUILDER), _perplexity(found, row["model"]))
                rows.append([found["precision"], row["model"], row["metric"], *both, *_measured(row), _reached(row, 1.0)])
    columns = ["precision", "graph", "metric", "perplexity, builder", "perplexity", "rounds", "speed over the builder's", "builder again"]
    return "**Our graph over onnxruntime-genai's own, dense, same precision** (bar 1.0)\n\n" + markdown_table([*columns, "outcome"], rows)


def _pruned_and_four_bits(found: Results) -> str:
    rows = []
    for row in _rows(found):
        if row["model"] in (OURS, ALL):
            continue
        share = [f"{row['allowed']:.3f}", interval(row["realised_gain"]), *_by_time(found, row)]
        if row["model"] == LLAMA:
            share = ["–"] * 6
        rows.append([row["model"], row["metric"], _perplexity(found, row["model"]), *_measured(row), *share])
    if LLAMA not in found["perplexities"]:
        rows.append([LLAMA, "not run", NO_LLAMA_CPP, *["–"] * 9])
    else:
        rows += list(_over_llama(found))
    columns = ["model", "metric", "perplexity", "rounds", "speed over dense int4 of the builder", "builder again", "allowed", "realised"]
    title = f"**int4: channels removed, over the builder's dense int4** (perplexity {_perplexity(found, BUILDER)})"
    table = markdown_table([*columns, "allowed by time", "realised", "bar", "outcome"], rows)
    return "\n\n".join([title, table, *_shares(found)])


def _by_time(found: Results, row: Mapping[str, Any]) -> list[str]:
    """What the removed weights allow by the time that they took, the share that was had, bar and outcome; a prompt pass only has such."""
    allowed = found.get("profile", {}).get("allowed", {}).get(row["model"]) if row["metric"] == "prefill" else None
    if allowed is None:
        return ["–", "–", f"{REALISED_BAR}", _reached(row, REALISED_BAR * row["allowed"])]
    realised = {end: row["speed_up"][end] / allowed for end in ("value", "low", "high")}
    return [f"{allowed:.3f}", interval(realised), f"{REALISED_BAR}", _reached(row, REALISED_BAR * allowed)]


def _shares(found: Results) -> list[str]:
    """A sentence on where the prompt pass spends its time."""
    if "profile" not in found:
        return []
    parts = found["profile"]["shares"]
    named = {"ffn": "FFNs", "attention": "attention with its projections", "head": "the output head", "rest": "the rest"}
    told = ", ".join(f"{named[part]} {share:.0%}" for part, share in parts.items())
    return [f"The builder's prompt pass by ONNX Runtime's profile: {told}."]


def _over_llama(found: Results) -> Iterator[list[str]]:
    """The pruned models again, over llama.cpp's dense one, which may take as much longer as what was removed allows."""
    recipe = BenchmarkSlice.model_validate(found["recipe"])
    for row in _rows(found):
        if row["model"] in (OURS, ALL, LLAMA):
            continue
        ours, theirs = (series(found, recipe, row["metric"], name) for name in (row["model"], LLAMA))
        ratio, share = paired_ratio(theirs, ours, each=recipe.rounds_per_opening), REALISED_BAR * row["allowed"]
        outcome = ("reached" if ratio.reaches(share) else "missed") if row["control_holds"] else "not resolved"
        measured = [rounds_of(ratio.as_record()), f"{interval(ratio.as_record())}, over llama.cpp", interval(row["control"])]
        realised = interval({end: ratio.as_record()[end] / row["allowed"] for end in ("value", "low", "high")})
        yield [
            row["model"],
            row["metric"],
            _perplexity(found, row["model"]),
            *measured,
            f"{row['allowed']:.3f}",
            realised,
            *("–", "–"),
            f"{REALISED_BAR}",
            outcome,
        ]


def _one_position(results: Sequence[Results]) -> str:
    rows = []
    for found in results:
        ratio, control = (_prefill(found, *pair) for pair in ((ALL, OURS), (DENSE, f"{DENSE} again")))
        resolved = "" if control_holds(control) else "not resolved"
        rows.append([found["precision"], _perplexity(found, OURS), rounds_of(ratio.as_record()), interval(ratio.as_record()), resolved])
    title = "**Logits of the last token over logits of all, prefill of 512 tokens, our graph**"
    return f"{title}\n\n" + markdown_table(["precision", "perplexity", "rounds", "speed over all positions", "outcome"], rows)


def _prefill(found: Results, first: str, second: str) -> Ratio:
    samples, each = found["samples"][PROMPT.name], BenchmarkSlice.model_validate(found["recipe"]).rounds_per_opening
    return paired_ratio(samples[first]["prefill"], samples[second]["prefill"], each=each)


def _rows(found: Results) -> Iterator[Mapping[str, Any]]:
    yield from (row for row in found["comparisons"] if WORKLOADS[row["metric"]].name == row["workload"])


def _measured(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return rounds_of(row["speed_up"]), interval(row["speed_up"]), interval(row["control"])


def _reached(row: Mapping[str, Any], bar: float) -> str:
    if not row["control_holds"]:
        return "not resolved"
    return "reached" if Ratio(**row["speed_up"]).reaches(bar) else "missed"


def _perplexity(found: Results, name: str) -> str:
    return f"{found['perplexities'][name]:.2f}"
