"""What a recipe and the dense model's config rule out already, said before hours of pruning."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from benchmarks.recipe import BenchmarkSlice
from benchmarks.runtimes.names import FORMS
from benchmarks.runtimes.opening import demand
from deploy.targets import ModelToServe, check_targets, wanted_targets
from exporters.onnx.lowering.mixtures import check_mixture
from exporters.onnx.lowering.precision import check_precision
from exporters.openvino.stage import check_packages
from exporters.tensorrt.builders import demand_buildable, demand_builder
from pipeline.architecture.families import Sublayer
from pipeline.architecture.obstacles import check_graph, no_graph
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.memory import usable_memory
from pipeline.common.options import RunOptions
from pipeline.prune.stage import check_spaces
from pipeline.prune.stage import check_targets as check_bounds
from pipeline.prune.step import ResolvedStep
from pipeline.prune.steps import resolve_steps
from pipeline.rebuild.biases import biases_added
from pipeline.rebuild.profiles import check_profile, check_request
from pipeline.recover.ranks import no_importance
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import check_recovery, check_trained, narrower_stream
from trimline.recipe import Recipe
from trimline.stages.rounds import consumer_of, demand_timed


def preflight(recipe: Recipe, options: RunOptions, dense: Checkpoint) -> None:
    """Whether the shape profile can hold what the steps may produce, and what follows can be run.

    Raises:
        TrimlineError: they cannot; says what to change.
    """
    check_feasible(recipe, options, ModelToServe.of(dense, recipe.rebuild.profile))


def check_feasible(recipe: Recipe, options: RunOptions, dense: ModelToServe) -> None:
    """``preflight`` of a model of which only the config is known, and the names of its files.

    Raises:
        TrimlineError: as ``preflight``.
    """
    steps = resolve_steps(recipe.prune)
    if recipe.export:
        check_graph(dense.geometry.family)
        check_precision(recipe.export.precision, options.device)
    else:
        _demand_no_readers(recipe, dense)
    profile, family, within = recipe.rebuild.profile, dense.geometry.family, dense.geometry.within
    check_request(profile, family, *shapes_asked_for(steps, profile), dense.config, within)
    _demand_heads(recipe.rebuild.profile, steps, dense)
    check_spaces(steps, dense.geometry)
    if any(Space.RESIDUAL in step.spaces for step in steps) and recipe.recover and recipe.recover.hidden_states:
        raise narrower_stream()
    if recipe.recover:
        check_trained(dense.geometry.family, recipe.recover)
    biases_added(dense.geometry, _readers_with_new_bias(steps, dense), recipe.rebuild.profile)
    _demand_mixture(recipe, options, dense)
    if recipe.recover:
        check_recovery(recipe.recover, options)
        _demand_importance(recipe.recover, steps)
    if recipe.build and recipe.export:
        if recipe.export.lowering != "portable":
            raise TrimlineError(
                f"TensorRT knows standard operators only, and the recipe exports with lowering: {recipe.export.lowering}.",
                "Set export.lowering to portable, or leave build out.",
            )
        demand_buildable(recipe.export.precision, "The recipe exports")
        demand_builder(recipe.build.builder)
    _demand_runtime(recipe)
    demand_timed(recipe)
    _demand_positions(recipe.benchmark, dense)
    _demand_counted(recipe, dense)
    check_targets(recipe.package, dense)


def _demand_mixture(recipe: Recipe, options: RunOptions, dense: ModelToServe) -> None:
    """What comes after the rebuild takes mixtures too, where the model is one.

    Raises:
        TrimlineError: it does not.
    """
    if dense.geometry.family.mixture is None:
        return
    if recipe.build:
        raise TrimlineError("Engines of mixtures were not tried, and the recipe builds one.", "Leave build out.")
    if recipe.export is None:
        return
    longest = max(recipe.evaluate.window, *(workload.prompt * workload.batch for workload in recipe.benchmark.workloads))
    check_mixture(dense.geometry, recipe.export.precision, longest, options.memory or usable_memory())


def shapes_asked_for(steps: Sequence[ResolvedStep], profile: Profile) -> tuple[bool, bool, bool]:
    """(uneven FFN widths, uneven KV groups, fewer heads) that steps may produce, as far as the profile tells them apart."""
    uneven = {Space.FFN: False, Space.KV_GROUP: False}
    fewer_heads = False
    for step in (step.as_budget() for step in steps):
        if step.recipe.pooled:
            uneven = {space: uneven[space] or (space in step.spaces and not step.is_even) for space in uneven}
            fewer_heads |= Space.KV_GROUP in step.spaces
        for space, budget in step.recipe.budget.items():
            if space not in uneven:
                continue
            fewer_heads |= space is Space.KV_GROUP
            uneven[space] |= step.recipe.search is not None
            if budget.keep is None:
                uneven[space] |= step.rule in ("global", "raw") or (step.rule == "cfsp" and space is Space.FFN)
            elif isinstance(budget.keep, tuple):
                uneven[space] |= _differ(budget.keep, profile)
    return uneven[Space.FFN], uneven[Space.KV_GROUP], fewer_heads


def _demand_heads(profile: Profile, steps: Sequence[ResolvedStep], dense: ModelToServe) -> None:
    """Some number of KV groups that the steps may leave is one that the config class of the profile's architecture takes.

    Raises:
        TrimlineError: none is, as for the last that was tried.
    """
    geometry, touching = dense.geometry, [step for step in steps if Space.KV_GROUP in step.spaces]
    if not touching or any(Space.RESIDUAL in step.spaces for step in steps):  # then the hidden size is not known yet
        return
    budget = touching[-1].recipe.budget.get(Space.KV_GROUP)
    most = geometry.most(Sublayer.ATTENTION)
    kept: Collection[int] = range(1, most + 1)
    if budget and budget.keep is not None:  # sizes per block are judged when the plan stands
        kept = (budget.keep,) if isinstance(budget.keep, int) else ()
    refused: list[TrimlineError] = []
    for count in kept if max(kept, default=0) <= most else ():  # more than there are is refused with its own sentence
        try:
            blocks = tuple(replace(block, kv_groups=min(count, block.kv_groups)) for block in geometry.blocks)
            check_profile(geometry.family, geometry, geometry.with_blocks(blocks), profile, dense.config)
        except TrimlineError as error:
            refused.append(error)
    if kept and len(refused) == len(kept):
        raise refused[-1]


def _demand_positions(timed: BenchmarkSlice, dense: ModelToServe) -> None:
    """Every timed request fits into the model's positions."""
    positions = dense.config.get("max_position_embeddings")
    for workload in timed.workloads:
        needed = workload.prompt + workload.steps
        if isinstance(positions, int) and needed > positions:
            raise TrimlineError(
                f"The timed workload {workload.name} takes {needed:,} positions, and the model has {positions:,}.",
                "Time shorter ones: benchmark.workloads.",
            )


def _readers_with_new_bias(steps: Sequence[ResolvedStep], dense: ModelToServe) -> set[str]:
    """Projections that bias compensation may give a bias; where they have one already it only changes."""
    shifted = {space for step in steps if step.recipe.compensation == "bias" for space in step.spaces}
    sublayers = {sublayer for space, sublayer in SUBLAYERS.items() if space in shifted}
    family = dense.geometry.family
    readers = [family.reader(sublayer) for sublayer in family.cuttable if sublayer in sublayers]
    return {reader.name for reader in readers if not dense.geometry.has_bias(reader)}


def _differ(sizes: tuple[int, ...], profile: Profile) -> bool:
    """Whether kept sizes differ in a way that matters to the profile: decilm knows absent sublayers (0)."""
    return len(set(sizes) - ({0} if profile is Profile.DECILM else set())) > 1


def _demand_importance(recover: RecoverSlice, steps: Sequence[ResolvedStep]) -> None:
    """Ranks that follow block importance need a step that measures it; said before hours of pruning."""
    wanted = recover.kind == "lora" and recover.lora.rank_by == "importance"
    if wanted and not any(step.measures_importance for step in steps):
        raise no_importance()


def _demand_counted(recipe: Recipe, dense: ModelToServe) -> None:
    """What a target bounds can be counted and met; times are known when they were measured."""
    counted = tuple(
        step.model_copy(update={"target": step.target and step.target.model_copy(update={"speedup": None, "latency_ms": None})})
        for step in recipe.prune.steps
    )
    steps = resolve_steps(recipe.prune.model_copy(update={"steps": counted}), consumer_of(recipe, None, dense.config))
    check_bounds(steps, dense.geometry)


def _demand_runtime(recipe: Recipe) -> None:
    """What the benchmark runs in is there; said before hours of pruning."""
    runtime = recipe.benchmark.runtime
    if FORMS[runtime] == "engine" and (recipe.build is None or recipe.build.builder != "tensorrt"):
        raise TrimlineError("The recipe times TensorRT engines and builds none.", "Add build: {builder: tensorrt}.")
    written, opened = recipe.export and recipe.export.format, FORMS[runtime]
    if written and opened in ("onnx", "engine", "openvino") and (opened == "openvino") != (written == "openvino"):
        other = "openvino" if written == "openvino" else "onnxruntime"
        raise TrimlineError(
            f"benchmark.runtime {runtime} does not open what export.format {written} writes.",
            f"Say benchmark: {{runtime: {other}}}, or export: {{format: {'openvino' if opened == 'openvino' else 'onnx'}}}.",
        )
    if FORMS[runtime] == "gguf":
        raise TrimlineError(f"benchmark.runtime {runtime} opens GGUF files, which a run does not write.",
                            f"Write them with trimline export --format gguf and time them with trimline bench --runtime {runtime}.")  # fmt: skip
    if recipe.export and written == "openvino":
        check_packages(recipe.export)
        demand_speakers(recipe)
    demand(runtime)


def demand_speakers(recipe: Recipe) -> None:
    """Nothing in the recipe reads an ONNX graph where none is written.

    Raises:
        TrimlineError: a build or a server does.
    """
    for what in [*(["lm_eval"] if recipe.lm_eval else []), *_readers(recipe)]:
        raise TrimlineError(f"{what} reads an ONNX graph, and export.format is openvino.", f"Leave {what} out, or export to onnx.")


def _readers(recipe: Recipe) -> list[str]:
    """What in the recipe reads an ONNX graph, beside the benchmark's runtime."""
    served = [target.name for target in wanted_targets(recipe.package) if "onnx" in target.needs]
    return [*(["build"] if recipe.build else []), *([f"package.targets {', '.join(served)}"] if served else [])]


def _demand_no_readers(recipe: Recipe, dense: ModelToServe) -> None:
    """Nothing in the recipe reads a graph where it makes none.

    Raises:
        TrimlineError: something does; says what to leave out, and that a graph may be made, where one can.
    """
    runtime = recipe.benchmark.runtime
    opens = [] if FORMS[runtime] in ("checkpoint", "gguf") else [f"benchmark.runtime {runtime}"]
    for what in [*_readers(recipe), *opens]:
        otherwise = "" if no_graph(dense.geometry.family) else ", or leave export: null out"
        instead = "Say benchmark: {runtime: torch}" if what in opens else f"Leave {what} out"
        raise TrimlineError(f"{what} reads a graph, and the recipe makes none (export: null).", f"{instead}{otherwise}.")
