"""What the stages wrote, put together into what a report says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.formulas.statistics import Ratio
from benchmarks.results.document import Gain, ModelRecord, Results, read
from benchmarks.results.energy import lines as energy_lines
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import Space
from pipeline.artefacts.artefact import Artefact
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.files import read_json
from pipeline.evaluate.perplexity import RESULT
from pipeline.evaluate.retrieval import RESULT as RETRIEVAL
from pipeline.plan.plan import Plan
from pipeline.prune.allocation.budget import removed_in_every_definition
from pipeline.prune.consumer import Consumer
from pipeline.rebuild.profiles import consumers
from pipeline.recover.folder import RECOVERED as RECORD_OF_RECOVERY
from pipeline.recover.recipe import RecoverSlice
from pipeline.sources.folder import TEXTS
from pipeline.sources.model import describe
from pipeline.sources.text import ROLES, SHARED_BAR
from trimline.recipe import Recipe, recipe_text
from trimline.reporting import (
    BlockRow,
    ByText,
    ConsumerRow,
    Measure,
    ModelRow,
    Recovery,
    Removed,
    ReportData,
    SpeedPoint,
    StageTime,
    TextRow,
    WorkloadRow,
)
from trimline.reporting.accuracy.positions import positions_of
from trimline.reporting.accuracy.retrieval import retrieval_rows
from trimline.reporting.data import RetrievalRow, Role
from trimline.stages.expert_rows import expert_curve, routed_rows
from trimline.stages.gate_rows import gate_rows
from trimline.stages.names import DENSE, PRUNED, REBUILT, RECOVERED, Name, evaluation_of
from trimline.stages.rounds import Round
from trimline.stages.target_rows import round_rows, target_rows
from trimline.stages.task_rows import task_rows

FLOPS_CONTEXT = 512
MISSED = 0.01  # of a budget; a smaller difference is not worth a warning
NORMAL = 1.96  # standard errors in half of a 95 % interval


@dataclass(frozen=True)
class Folders:
    """The folders of one model: its checkpoint, what was exported of it, its perplexity."""

    checkpoint: Path
    onnx: Path | None
    evaluation: Path


def collect(
    recipe: Recipe,
    command: str,
    texts: Path,
    plan: Path,
    lanes: Mapping[Role, Folders],
    timings: Path,
    done: Mapping[Name, Artefact],
    rounds: tuple[Round, ...],
    consumer: Consumer,
) -> ReportData:
    """Everything that the report of a run shows.

    Args:
        recipe: what was asked for.
        command: what was typed.
        texts, plan, timings: artefacts of the text, prune and benchmark stages.
        lanes: folders of the dense and the pruned model.
        done: every artefact by its name, for the times.
        rounds: what was gone through towards a target.
        consumer: what targets are stated for.
    """
    decision = Plan.read(plan)
    results = read(timings)
    original, result = (Checkpoint(lanes[role].checkpoint).geometry for role in ("dense", "pruned"))
    text = read_json(texts / TEXTS)
    models = tuple(_model_row(role, lane, results.models.get(role)) for role, lane in lanes.items())
    return ReportData(
        title=f"{recipe.name}: {describe(recipe.model)}",
        command=command,
        model_source=describe(recipe.model),
        recipe=recipe_text(recipe),
        models=models,
        removed=Removed(**removed_in_every_definition(original, result, FLOPS_CONTEXT)),
        blocks=tuple(block_rows(decision, original.blocks)),
        importance_name="mean angular distance between a block's input and output",
        flops_context=FLOPS_CONTEXT,
        evaluation=_evaluation(recipe, text, lanes),
        workloads=tuple(_workloads(results)),
        decode_points=tuple(_points(models, results)),
        gates=tuple(gate_rows({role: lane.onnx for role, lane in lanes.items() if lane.onnx}, done)),
        consumers=tuple(_consumers(recipe, lanes["pruned"].checkpoint)),
        texts=tuple(_texts(text, decision)),
        overlap=text["overlap"],
        warnings=tuple(_warnings(recipe, text, original, result)),
        environment=environment_rows(results) | energy_lines(results),
        stages=tuple(StageTime(str(name), artefact.seconds) for name, artefact in done.items()),
        recovery=_recovery(recipe.recover, done) if recipe.recover else None,
        targets=tuple(target_rows(recipe.prune, original, result, consumer, rounds)),
        rounds=tuple(round_rows(rounds, original, consumer)),
        tasks=tuple(task_rows(done)),
        by_text=tuple(_by_text(done)),
        retrieval=tuple(_retrieval(done)),
        expert_curve=expert_curve(done),
        routed=tuple(routed_rows(decision)),
    )


def _evaluation(recipe: Recipe, text: Mapping[str, Any], lanes: Mapping[Role, Folders]) -> str:
    windows = recipe.evaluate
    precision = read_json(lanes["dense"].evaluation / RESULT).get("precision")  # a graph's; a checkpoint's record has a dtype
    reader = f", read by the {precision} graphs in ONNX Runtime" if precision else ""
    return f"{text['evaluation'][0]['name']}, {windows.windows} windows of {windows.window} tokens, not overlapping{reader}"


def _model_row(role: Role, lane: Folders, measured: ModelRecord | None) -> ModelRow:
    checkpoint = Checkpoint(lane.checkpoint)
    geometry = checkpoint.geometry
    found = read_json(lane.evaluation / RESULT)
    return ModelRow(
        role=role,
        name=role,
        parameters=geometry.total_parameters(),
        decoder_parameters=geometry.decoder_parameters(),
        decoder_flops=geometry.decoder_flops(FLOPS_CONTEXT),
        checkpoint_bytes=checkpoint.bytes,
        onnx_bytes=None if lane.onnx is None else _bytes(lane.onnx, "*.onnx*") or _bytes(lane.onnx, "openvino_model.*"),
        perplexity=_perplexity(found),
        peak_memory_bytes=measured.memory.get("peak") if measured else None,
        cold_start_seconds=sum(measured.cold_start.values()) if measured else None,
        window_losses=tuple(found["window_losses"]),
        active_parameters=None if geometry.family.mixture is None else geometry.active_parameters(),
    )


def _perplexity(found: Mapping[str, Any]) -> Measure:
    value, error = found["perplexity"], found["standard_error"]
    if error is None:
        return Measure(value)
    return Measure(value, low=value - NORMAL * error, high=value + NORMAL * error, error=error)


def block_rows(plan: Plan, original: tuple[Any, ...]) -> Iterator[BlockRow]:
    """Units of every original block, before and after."""
    importance = plan.steps[0].facts.get("block importance", {})
    selection = plan.selection
    for number, block in enumerate(original):
        stays = number in selection.blocks
        yield BlockRow(
            number=number,
            dense_ffn=block.ffn,
            dense_kv_groups=block.kv_groups,
            ffn=len(selection.ffn[number]) if stays else 0,
            kv_groups=len(selection.kv_groups[number]) if stays else 0,
            importance=importance.get(str(number)),
            dense_experts=block.experts,
            experts=len(selection.experts_of(number)) if stays else 0,
        )


def _workloads(results: Results) -> Iterator[WorkloadRow]:
    timings = {(row.model, row.workload, row.phase): row for row in results.timings}
    workloads = {workload.name: workload for workload in results.asked.workloads}
    for row in results.comparisons:
        if row.model != "pruned":
            continue
        phase, asked, samples = row.phase, workloads[row.workload], results.samples[row.workload]
        dense, pruned = (timings[role, row.workload, phase] for role in ("dense", "pruned"))
        yield WorkloadRow(
            name=f"{asked.prompt} tokens, nothing cached" if phase == "prefill" else f"1 token, {asked.prompt} cached",
            phase=phase,
            tokens=asked.prompt if phase == "prefill" else 1,
            past=0 if phase == "prefill" else asked.prompt,
            batch=asked.batch,
            dense=Measure(dense.seconds.p50),
            pruned=Measure(pruned.seconds.p50),
            dense_samples=tuple(samples["dense"].seconds(phase)),
            pruned_samples=tuple(samples["pruned"].seconds(phase)),
            speedup=interval(row.speedup),
            control=interval(row.control),
            allowed=row.allowed,
            realised_gain=interval(row.realised_gain),
            verdict=row.verdict,
            dense_parts={name: part.p50 for name, part in dense.parts.items()},
            pruned_parts={name: part.p50 for name, part in pruned.parts.items()},
        )


def interval(found: Ratio | Gain) -> Measure:
    """A measured ratio as a report shows it."""
    return Measure(found.value, low=found.low, high=found.high)


def _points(models: tuple[ModelRow, ...], results: Results) -> Iterator[SpeedPoint]:
    for model in models:
        rows = [row for row in results.timings if row.model == model.name and row.phase == "decode"]
        if rows and model.perplexity is not None:
            yield SpeedPoint(model.name, model.perplexity.value, rows[0].tokens_per_second)


def _recovery(recipe: RecoverSlice, done: Mapping[Name, Artefact]) -> Recovery:
    found = read_json(done[RECOVERED].folder / RECORD_OF_RECOVERY)
    by = "" if recipe.lora.rank_by == "uniform" else f" on average, more to {recipe.lora.more_to} blocks"
    trained = "every weight" if recipe.kind == "full" else f"LoRA of rank {recipe.lora.rank}{by}"
    towards = "the text" if recipe.loss == "text" else "the dense model's predictions"
    states = " and hidden states" if recipe.hidden_states else ""
    return Recovery(
        what=f"{trained}, towards {towards}{states}, {found['taken']} steps of {recipe.batch} windows of {recipe.window} tokens",
        tokens=found["tokens"],
        before=_perplexity(read_json(done[evaluation_of(REBUILT)].folder / RESULT)),
        losses=tuple((point["step"], point["loss"]) for point in found["losses"]),
        held_out=tuple((point["step"], point["loss"]) for point in found.get("held out", ())),
        written=found["best"]["step"] if "best" in found else None,
    )


def _consumers(recipe: Recipe, pruned: Path) -> Iterator[ConsumerRow]:
    checkpoint = Checkpoint(pruned)
    for verdict in consumers(checkpoint.geometry, recipe.rebuild.profile, checkpoint.config):
        yield ConsumerRow(verdict.consumer, verdict.loads, verdict.why, verdict.change, verdict.checked)


def _texts(text: Mapping[str, Any], plan: Plan) -> Iterator[TextRow]:
    tokens = plan.steps[0].facts["tokens"]
    for role in ROLES:
        for found in text[role]:
            whole = tokens if role == "calibration" and len(text[role]) == 1 else None
            yield TextRow(role, found["name"], found["characters"], found["sha256"], whole)


def _warnings(recipe: Recipe, text: Mapping[str, Any], original: Geometry, result: Geometry) -> Iterator[str]:
    if text["overlap"] > SHARED_BAR:
        worst = max(text["pairs"], key=lambda pair: pair["share"])
        which = f" ({worst['evaluation']}; {worst['seen']})" if len(text["pairs"]) > 1 else ""
        yield (
            f"{text['overlap']:.0%} of the evaluation text also stands in the {worst['role']} text{which}; this was allowed by the recipe, "
            "and the perplexity of the pruned model is flattered by it."
        )
    yield from _missed_budget(recipe, original, result)


def _by_text(done: Mapping[Name, Artefact]) -> Iterator[ByText]:
    """Both checkpoints, text by text."""
    dense, pruned = (read_json(done[evaluation_of(lane)].folder / RESULT) for lane in (DENSE, PRUNED))
    window = pruned["window"]
    for before, after in zip(dense["texts"], pruned["texts"], strict=True):
        near = after.get("divergence"), after.get("same_best"), positions_of(before, after, window)
        yield ByText(after["text"], _perplexity(before), _perplexity(after), *near)


def _retrieval(done: Mapping[Name, Artefact]) -> Iterator[RetrievalRow]:
    """Both checkpoints, length by length; none where they were not asked."""
    files = [done[evaluation_of(lane)].folder / RETRIEVAL for lane in (DENSE, PRUNED)]
    if all(file.is_file() for file in files):
        yield from retrieval_rows(*map(read_json, files))


def _missed_budget(recipe: Recipe, original: Geometry, result: Geometry) -> Iterator[str]:
    """Where one budget was asked for and rounding left something else; several budgets cannot be told apart here."""
    budgets = [(space, budget) for step in recipe.prune.steps for space, budget in step.budget.items()]
    if len(budgets) != 1 or budgets[0][1].remove is None:
        return
    space, budget = budgets[0]
    of_units = {
        Space.FFN: "ffn_channels",
        Space.KV_GROUP: "kv_groups",
        Space.LAYER: "blocks",
        Space.RESIDUAL: "residual_channels",
        Space.EXPERT: "experts",
    }
    if space not in of_units:
        return
    definition = of_units[space] if budget.of == "units" else f"decoder_{budget.of}"
    got, asked = removed_in_every_definition(original, result, budget.context)[definition], budgets[0][1].remove
    if asked is not None and abs(got - asked) > MISSED:
        yield f"The recipe asks for {asked:.1%} of {definition.replace('_', ' ')}; whole units and rounding made it {got:.1%}."


def environment_rows(results: Results) -> dict[str, str]:
    """Where a benchmark ran, and the hash of what was asked of it, as lines of a table."""
    block = results.environment
    gpus = [line.split(", ") for line in block["gpu"] or []]  # name, driver; what changes from minute to minute
    flat = {
        "processor": f"{block['processor']} ({', '.join(block['flags'])})",
        "threads": block["threads"],
        "memory": f"{block['memory_bytes'] / 2**30:.1f} GiB",
        "load average before and after": f"{block['load_average']['before']:.2f} and {block['load_average']['after']:.2f}",
        "GPU": "; ".join(", ".join(gpu[:2]) for gpu in gpus) or "none",
        "GPU clock and power cap": "; ".join(", ".join(gpu[2:]) for gpu in gpus) or None,
        "clock after the timing": f"{mhz:.0f} MHz" if (mhz := block.get("frequency_mhz")) else None,
        "power cap": f"{cap:g} W" if (cap := block.get("power_cap_watts")) else None,
        "system": block["system"],
        "python": block["python"],
        "commit": block["commit"],
        "hash of what was asked for": results.recipe_hash,
    }
    return {name: str(value) for name, value in (flat | block["versions"]).items() if value is not None}


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
