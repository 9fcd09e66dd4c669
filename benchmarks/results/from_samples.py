"""From samples to the document that ``results.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.formulas import roofline
from benchmarks.formulas.statistics import control_holds, paired_ratio, summarise, verdict
from benchmarks.recipe import BenchmarkSlice, Phase, Workload
from benchmarks.results.document import CeilingsRecord, Gain, ModelRecord, PairedComparison, RawSamples, Results, Timing, WholeRequests
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import CONTROL, DENSE, Samples, Timed
from pipeline.artefacts.artefact import digest

FORMULAS = {
    "prefill": "seconds of one pass over the prompt, cache empty; no tokenising, no queue",
    "decode": "seconds per step after the prompt: (time of the request − prefill) / (output tokens − 1)",
    "gaps": "every time between two tokens, pooled over the rounds",
    "request": "seconds of the whole request: prompt and every step",
    "tokens_per_second (request)": "batch × output tokens / median request",
    "tokens_per_second (prefill)": "batch × prompt tokens / median prefill",
    "tokens_per_second (decode)": "batch / median decode",
    "speed_up": "of every opening the median over its rounds of (time of dense / time of the other in that round), of these the geometric "
    "mean; 95 % interval by Student's t over the openings' logarithms",
    "of_medians": "the same from (median time of dense / median time of the other) in every opening",
    "control": "the speed-up of dense over itself in a second process; timings count if it is within 1 ± 0.02 over at least 25 rounds of at "
    "least two openings",
    "time_bound": "Σ over operators of max(bytes / measured bandwidth, FLOPs / measured rate)",
    "allowed": "time bound of dense / time bound of the other",
    "realised_gain": "speed-up / allowed",
    "mbu": "(weight bytes + KV bytes read per step) / median time / measured memory bandwidth",
    "mfu": "FLOPs of the step / median time / measured matrix-multiply rate",
    "joules_per_token (prefill)": "energy of the prompt pass / (batch × prompt tokens)",
    "joules_per_token (decode)": "energy of all steps / (batch × steps); whole package or card, idle power and other programs included",
    "load": "seconds to open the model; median over openings",
    "first_request": "seconds of the first prompt pass after an opening, of the first workload; median over openings",
    "first_requests": "Σ over workloads of the whole first request after an opening, compilation included; median over openings",
    "engine_build": "seconds to parse the graph and to build its engine, once and before all openings; no part of load",
    "others": "cores that other processes kept busy while the sample was taken",
}
# Of TensorRT only, under trtexec's names; the parts are those of a prompt pass, or the mean over a request's steps.
PARTS = {
    "enqueue": "seconds that the processor takes to hand one call to the GPU",
    "h2d": "seconds of copying token ids to the GPU, between two CUDA events",
    "compute": "seconds of the engine itself on the GPU, between two CUDA events",
    "d2h": "seconds of copying the logits of the last position to main memory, between two CUDA events",
    "host_latency": "h2d + compute + d2h",
    "queries_per_second": "calls of the engine / Σ of their seconds",
}


def results_of(
    subjects: Mapping[str, Subject],
    timed: Timed,
    recipe: BenchmarkSlice,
    ceilings: Sequence[Mapping[str, list[float]]],
    children: Mapping[str, Any],
    multiplied: str,
    surroundings: Mapping[str, Any],
) -> Results:
    """Everything that was measured and what follows from it.

    Args:
        subjects: by name, ``dense`` among them.
        timed: samples of every subject and of ``dense again``.
        ceilings: rates of every repeat, measured before and after the timing so that a busy moment does not lower them.
        children: cold start and memory by model name, ``dense again`` included.
        multiplied: the precision that the rate was measured in.
        surroundings: where it was measured.
    """
    rates = {kind: [rate for measured in ceilings for rate in measured[kind]] for kind in ("bandwidth", "rate")}
    limit = roofline.Ceilings(max(rates["bandwidth"]), max(rates["rate"]))
    told = any(sample.parts for of_models in timed.values() for samples in of_models.values() for sample in samples.rounds)
    asked = recipe.model_dump(mode="json")
    return Results(
        formulas=FORMULAS | (PARTS if told else {}),
        recipe=asked,
        recipe_hash=digest(asked),
        ceilings=CeilingsRecord(bandwidth=limit.bandwidth, rate=limit.rate, multiplied=multiplied, samples=rates),
        models={name: ModelRecord(**subject.as_record(), **children[name]) for name, subject in subjects.items()},
        control_process=dict(children[CONTROL]),
        timings=[
            timing(subjects[name], workload, phase, timed[workload.name][name], limit)
            for workload in recipe.workloads
            for name in subjects
            for phase in timed[workload.name][name].by_phase()
        ],
        comparisons=[
            comparison(subjects[DENSE], subjects[name], workload, phase, timed[workload.name], limit, recipe.rounds_per_opening)
            for workload in recipe.workloads
            for name in subjects
            if name != DENSE
            for phase in timed[workload.name][name].by_phase()
        ],
        samples={workload.name: {name: _raw(samples) for name, samples in timed[workload.name].items()} for workload in recipe.workloads},
        environment=dict(surroundings),
    )


def timing(subject: Subject, workload: Workload, phase: Phase, samples: Samples, limit: roofline.Ceilings) -> Timing:
    """One model on one workload: statistics, throughput, and how near to the ceilings it ran."""
    times = summarise(samples.by_phase()[phase])
    call = subject.call(workload, phase)
    tokens = call.rows * (workload.steps if phase == "decode" else 1)
    further = _parts(samples, phase)
    if phase == "decode":
        whole = summarise([sample.seconds for sample in samples.rounds])
        further |= {"gaps": summarise(samples.gaps())}
        further |= {"request": WholeRequests(seconds=whole, tokens_per_second=workload.batch * workload.output / whole.p50)}
    return Timing(
        workload=workload.name,
        phase=phase,
        model=subject.name,
        seconds=times,
        tokens_per_second=call.rows / times.p50,
        time_bound=roofline.time_bound(_work(subject, workload, phase), limit),
        mbu=roofline.mbu(subject.geometry, call, times.p50, limit, subject.widths),
        mfu=roofline.mfu(subject.geometry, call, times.p50, limit),
        others=summarise([sample.others for sample in samples.rounds]),
        joules_per_token={counter: summarise([joules / tokens for joules in rounds]) for counter, rounds in samples.joules(phase).items()},
        **further,
    )


def comparison(
    dense: Subject, other: Subject, workload: Workload, phase: Phase, timed: Mapping[str, Samples], limit: roofline.Ceilings, each: int
) -> PairedComparison:
    """Dense against another model on one workload: speedup, control, verdict, and the share of what is allowed.

    Args:
        each: rounds between two openings.
    """
    times = {name: timed[name].by_phase()[phase] for name in (DENSE, CONTROL, other.name)}
    speedup = paired_ratio(times[DENSE], times[other.name], each=each)
    control = paired_ratio(times[DENSE], times[CONTROL], each=each)
    allowed = roofline.allowed_speedup(_work(dense, workload, phase), _work(other, workload, phase), limit)
    return PairedComparison(
        workload=workload.name,
        phase=phase,
        model=other.name,
        speedup=speedup,
        control=control,
        control_holds=control_holds(control),
        verdict=verdict(speedup, control).value,
        allowed=allowed,
        realised_gain=Gain(value=speedup.value / allowed, low=speedup.low / allowed, high=speedup.high / allowed),
    )


def _parts(samples: Samples, phase: Phase) -> dict[str, Any]:
    """What an engine's calls were made of; nothing of other runtimes."""
    parts = samples.parts(phase)
    if not parts:
        return {}
    latency = [sum(of_round) for of_round in zip(*(parts[name] for name in ("h2d", "compute", "d2h")), strict=True)]
    times = samples.by_phase()[phase]
    found = {name: summarise(seconds) for name, seconds in (parts | {"host_latency": latency}).items()}
    return {"parts": found, "queries_per_second": len(times) / sum(times)}


def _work(subject: Subject, workload: Workload, phase: Phase) -> list[roofline.Operator]:
    return roofline.operators(subject.geometry, subject.call(workload, phase), subject.widths)


def _raw(samples: Samples) -> RawSamples:
    parts = [dict(sample.parts) for sample in samples.rounds]
    return RawSamples(
        prefill=[sample.prefill for sample in samples.rounds],
        gaps=[list(sample.gaps) for sample in samples.rounds],
        others=[sample.others for sample in samples.rounds],
        joules=[dict(sample.joules) for sample in samples.rounds],
        **({"parts": parts} if any(parts) else {}),
    )
