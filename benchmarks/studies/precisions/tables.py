"""The tables of ``benchmarks.studies.precisions``, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.formulas.statistics import Ratio, control_holds, paired_ratio
from benchmarks.recipe import Phase, Workload
from benchmarks.results.cells import interval, ratio, rounds_of
from benchmarks.results.document import DocumentPart, PairedComparison, Results
from benchmarks.results.markdown import machine
from benchmarks.results.target import series
from benchmarks.runtimes.llama_cpp import NO_LLAMA_CPP
from benchmarks.runtimes.names import Runtime
from benchmarks.studies.pages import markdown_table
from benchmarks.timing.timing import DENSE

BUILDER, OURS, ALL, LLAMA = "builder", "ours", "ours, all positions", "llama.cpp, Q4_1 (dense)"
PROMPT = Workload(prompt=512)
WORKLOADS: dict[Phase, Workload] = {"prefill": PROMPT, "decode": Workload(prompt=128, output=17)}
REALISED_BAR = 0.9
TIMED_IN: dict[Runtime, str] = {
    "onnxruntime": "Timed in ONNX Runtime's own session",
    "onnxruntime_genai": "Timed in onnxruntime-genai's own generator, where a prompt pass ends with the choice of its first token",
}


class PassProfile(DocumentPart):
    """Where the prompt pass of the builder's int4 graph spends its time, by part, and what that allows every smaller model."""

    shares: dict[str, float]
    allowed: dict[str, float]


class PrecisionResults(Results):
    """A benchmark's results over the builder's graph in one precision, and the perplexity of every form."""

    precision: str
    perplexities: dict[str, float]
    profile: PassProfile | None = None


def document(results: Sequence[PrecisionResults]) -> str:
    """Markdown: what was timed in, the three questions, a table each, and the machine; all results are of one runtime."""
    parts = [_timed_in(results[-1]), _as_fast_as_the_builder(results)]
    four = next((found for found in results if found.precision == "int4"), None)
    if four is not None:
        parts.append(_pruned_and_four_bits(four))
    if all(PROMPT.name in found.samples for found in results):
        parts.append(_one_position(results))
    return "\n\n".join([*parts, machine(results[-1])])


def _timed_in(found: PrecisionResults) -> str:
    llama = " (llama.cpp's file in llama.cpp)" if any(LLAMA in samples for samples in found.samples.values()) else ""
    return f"{TIMED_IN[found.asked.runtime]}{llama}; perplexities are of the same files, whatever generates."


def _as_fast_as_the_builder(results: Sequence[PrecisionResults]) -> str:
    rows = []
    for found in results:
        for row in _rows(found):
            if row.model in (OURS, ALL):
                both = (_perplexity(found, BUILDER), _perplexity(found, row.model))
                rows.append([found.precision, row.model, row.phase, *both, *_measured(row), _reached(row, 1.0)])
    columns = ["precision", "graph", "metric", "perplexity, builder", "perplexity", "rounds", "speed over the builder's", "builder again"]
    return "**Our graph over onnxruntime-genai's own, dense, same precision** (bar 1.0)\n\n" + markdown_table([*columns, "outcome"], rows)


def _pruned_and_four_bits(found: PrecisionResults) -> str:
    rows = []
    for row in _rows(found):
        if row.model in (OURS, ALL):
            continue
        share = [f"{row.allowed:.3f}", interval(row.realised_gain), *_by_time(found, row)]
        if row.model == LLAMA:
            share = ["–"] * 6
        rows.append([row.model, row.phase, _perplexity(found, row.model), *_measured(row), *share])
    if LLAMA not in found.perplexities:
        rows.append([LLAMA, "not run", NO_LLAMA_CPP, *["–"] * 9])
    else:
        rows += list(_over_llama(found))
    columns = ["model", "metric", "perplexity", "rounds", "speed over dense int4 of the builder", "builder again", "allowed", "realised"]
    title = f"**int4: channels removed, over the builder's dense int4** (perplexity {_perplexity(found, BUILDER)})"
    table = markdown_table([*columns, "allowed by time", "realised", "bar", "outcome"], rows)
    return "\n\n".join([title, table, *_shares(found)])


def _by_time(found: PrecisionResults, row: PairedComparison) -> list[str]:
    """What the removed weights allow by the time that they took, the share that was had, bar and outcome; a prompt pass only has such."""
    allowed = found.profile.allowed.get(row.model) if found.profile and row.phase == "prefill" else None
    if allowed is None:
        return ["–", "–", f"{REALISED_BAR}", _reached(row, REALISED_BAR * row.allowed)]
    return [f"{allowed:.3f}", _share(row.speedup, allowed), f"{REALISED_BAR}", _reached(row, REALISED_BAR * allowed)]


def _share(found: Ratio, allowed: float) -> str:
    """How much of what is allowed was had, with its interval."""
    return ratio(found.value / allowed, found.low / allowed, found.high / allowed)


def _shares(found: PrecisionResults) -> list[str]:
    """A sentence on where the prompt pass spends its time."""
    if found.profile is None:
        return []
    parts = found.profile.shares
    named = {"ffn": "FFNs", "attention": "attention with its projections", "head": "the output head", "rest": "the rest"}
    told = ", ".join(f"{named[part]} {share:.0%}" for part, share in parts.items())
    return [f"The builder's prompt pass by ONNX Runtime's profile: {told}."]


def _over_llama(found: PrecisionResults) -> Iterator[list[str]]:
    """The pruned models again, over llama.cpp's dense one, which may take as much longer as what was removed allows."""
    for row in _rows(found):
        if row.model in (OURS, ALL, LLAMA):
            continue
        ours, theirs = (series(found, row.phase, name) for name in (row.model, LLAMA))
        over, share = paired_ratio(theirs, ours, each=found.asked.rounds_per_opening), REALISED_BAR * row.allowed
        outcome = ("reached" if over.reaches(share) else "missed") if row.control_holds else "not resolved"
        measured = [rounds_of(over), f"{interval(over)}, over llama.cpp", interval(row.control)]
        yield [
            row.model,
            row.phase,
            _perplexity(found, row.model),
            *measured,
            f"{row.allowed:.3f}",
            _share(over, row.allowed),
            *("–", "–"),
            f"{REALISED_BAR}",
            outcome,
        ]


def _one_position(results: Sequence[PrecisionResults]) -> str:
    rows = []
    for found in results:
        faster, control = (_prefill(found, *pair) for pair in ((ALL, OURS), (DENSE, f"{DENSE} again")))
        resolved = "" if control_holds(control) else "not resolved"
        rows.append([found.precision, _perplexity(found, OURS), rounds_of(faster), interval(faster), resolved])
    title = "**Logits of the last token over logits of all, prefill of 512 tokens, our graph**"
    return f"{title}\n\n" + markdown_table(["precision", "perplexity", "rounds", "speed over all positions", "outcome"], rows)


def _prefill(found: PrecisionResults, first: str, second: str) -> Ratio:
    samples, each = found.samples[PROMPT.name], found.asked.rounds_per_opening
    return paired_ratio(samples[first].prefill, samples[second].prefill, each=each)


def _rows(found: PrecisionResults) -> Iterator[PairedComparison]:
    yield from (row for row in found.comparisons if WORKLOADS[row.phase].name == row.workload)


def _measured(row: PairedComparison) -> tuple[str, str, str]:
    return rounds_of(row.speedup), interval(row.speedup), interval(row.control)


def _reached(row: PairedComparison, bar: float) -> str:
    if not row.control_holds:
        return "not resolved"
    return "reached" if row.speedup.reaches(bar) else "missed"


def _perplexity(found: PrecisionResults, name: str) -> str:
    return f"{found.perplexities[name]:.2f}"
