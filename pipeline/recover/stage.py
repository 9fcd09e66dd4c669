"""The recover stage: a smaller checkpoint is trained, and written again in the same form."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, set_seed

from pipeline.architecture.families import Family
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import GATE, write_json
from pipeline.common.options import RunOptions
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.plan.folder import PLAN
from pipeline.recover.budget import demand_memory
from pipeline.recover.data import training_windows
from pipeline.recover.folder import RECOVERED
from pipeline.recover.origins import Origins
from pipeline.recover.processes import first_process
from pipeline.recover.ranks import block_ranks
from pipeline.recover.recipe import RecoverSlice
from pipeline.sources.companions import copy_companions
from pipeline.sources.model import checkpoint_folder

if TYPE_CHECKING:
    from pipeline.recover.losses.distillation import Lesson


def recover(
    dense: Path, pruned: Path, texts: Path, recipe: RecoverSlice, options: RunOptions, out: Path, work: Path, events: Events
) -> None:
    """Writes a checkpoint folder of the form that ``pruned`` has, with recover.json and gate.json.

    Launched as several processes (torchrun), all of them train and the first one writes.

    Args:
        dense: a source artefact or checkpoint folder; read for distillation only.
        pruned: a rebuild artefact, or any checkpoint folder.
        texts: folder with the recovery or calibration texts.
        recipe: how to train.
        options: device and dtype.
        out: empty folder.
        work: holds what survives a kill, so that the same call goes on; the caller removes it once ``out`` is safe.
        events: progress.

    Raises:
        TrimlineError: peft is missing, memory does not hold it, the text is too short, the training diverges, or the plan lacks
            what ranks or hidden states are taken from.
        GateError: the written checkpoint is not what was trained, or lost zeros.
    """
    # Imported here: the Trainer takes seconds, which no other verb should wait for.
    from pipeline.recover.sharded import whole_state
    from pipeline.recover.training import train

    options.apply()
    check_recovery(recipe, options)
    checkpoint = Checkpoint(pruned)
    check_trained(checkpoint.geometry.family, recipe)
    taught = Checkpoint(checkpoint_folder(dense)) if recipe.loss == "distillation" else None
    for source in (checkpoint, taught):
        if source is not None:
            source.demand_no_doubt()
            source.check_finite()
    demand_memory(checkpoint, taught, recipe, options)
    drawn = training_windows(load_tokenizer(pruned), texts, recipe, checkpoint.geometry)
    origins = Origins.read(pruned, len(checkpoint.geometry.blocks))
    set_seed(recipe.seed)
    model = load_model(pruned, dtype=torch.float32, trust_remote_code=options.trust_remote_code)
    lesson = _lesson(model, checkpoint, taught, origins, recipe, options)
    student = _student(model, checkpoint, origins, recipe)
    if lesson.teacher:
        lesson.teacher.share_head(lesson.head)
    blocks = blocks_of(model, checkpoint.geometry.family)
    found, trained = train(student.model, drawn, recipe, options, work, events, blocks, lesson, student.callbacks)
    state = whole_state(trained) if recipe.sharded else None  # every process has a part of it to give
    if first_process():
        if state is not None:
            model = load_model(pruned, dtype=torch.float32, trust_remote_code=options.trust_remote_code)
            student = _student(model, checkpoint, origins, recipe)
            student.model.load_state_dict(state)
        read = {"tokens": found["taken"] * recipe.batch * recipe.window, "different tokens": drawn.windows.numel()}
        record = student.facts | read | found
        _finish(student, checkpoint, recipe, options, out, record, events)


def check_trained(family: Family, recipe: RecoverSlice) -> None:
    """Whether recovery trains a family so.

    Raises:
        TrimlineError: dropout in adapters of stacked experts, which peft has no formula for; experts shared by processes, which was not
            tried; or routers of a model without any.
    """
    if family.mixture is None:
        if recipe.routers == "trained":
            raise TrimlineError(f"{family.model_type} has no routers to train.", "Leave recover.routers out.")
        return
    if recipe.kind == "lora" and recipe.lora.dropout and "ffn" in recipe.lora.targets:
        raise TrimlineError(
            f"Adapters of stacked experts have no dropout, and {family.model_type} has such experts.",
            "Set recover.lora.dropout to 0, or recover.lora.targets to [attention].",
        )
    if recipe.sharded:
        raise TrimlineError(
            f"Sharing mixtures of experts among processes was not tried, and {family.model_type} is one.", "Leave sharded out."
        )


def check_recovery(recipe: RecoverSlice, options: RunOptions) -> None:
    """What is known before anything is measured.

    Raises:
        TrimlineError: LoRA without peft, a dtype that cannot be trained in, or one process that should share with others.
    """
    if recipe.kind == "lora" and peft_version() is None:
        raise TrimlineError(
            "LoRA needs the package peft, which is not installed.", "Run: pip install 'trimline[recover]', or use recover.kind: full."
        )
    if recipe.sharded:
        from pipeline.recover.sharded import demand_processes

        demand_processes()
    if options.resolved_dtype() is torch.float16:
        raise TrimlineError("Training in float16 is not supported.", "Use --dtype bfloat16 or float32.")


def peft_version() -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version("peft")
    except metadata.PackageNotFoundError:
        return None


def result_key(recipe: RecoverSlice, options: RunOptions) -> dict[str, Any]:
    """What a result depends on beside its input folders and the code; how often states are saved changes nothing."""
    wanted = recipe.model_dump(mode="json", exclude={"save_every"})
    return {"recipe": wanted, "options": options.as_record(), "peft": peft_version()}


@dataclass(frozen=True)
class _Student:
    """What is trained, who watches its steps, and what recover.json says of it."""

    model: Any
    facts: dict[str, Any]
    callbacks: tuple[TrainerCallback, ...] = field(default=())


def _student(model: PreTrainedModel, checkpoint: Checkpoint, origins: Origins, recipe: RecoverSlice) -> _Student:
    from pipeline.recover.zeros import ZeroKeeper, projection_weights

    facts: dict[str, Any] = {"kind": recipe.kind, "loss": recipe.loss, "steps": recipe.steps}
    if recipe.kind == "full":
        if not recipe.trains_embeddings(checkpoint.geometry.tied):
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.requires_grad_(False)
        if recipe.routers == "frozen":
            for router in _routers(model, checkpoint.geometry):
                router.requires_grad_(False)
        parameters = dict(model.named_parameters())
        facts["trained parameters"] = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
        keeper = ZeroKeeper({name: parameters[name] for name in projection_weights(checkpoint.geometry)})
        return _Student(model, facts, (keeper,))
    from pipeline.recover.adapters import adapted

    ranks = block_ranks(recipe.lora, origins.blocks, origins.plan)
    wrapped = adapted(model, checkpoint.geometry, recipe.lora, ranks)
    facts["trained parameters"] = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    facts["ranks"] = {str(block): rank for block, rank in zip(origins.blocks, ranks, strict=True)}
    return _Student(wrapped, facts)


def _routers(model: PreTrainedModel, geometry: Geometry) -> Iterator[nn.Module]:
    """What chooses experts in every block that has some."""
    mixture = geometry.family.mixture
    for number, block in enumerate(geometry.blocks):
        if mixture is not None and block.experts:
            yield model.get_submodule(geometry.family.module(number, mixture.router))


def _lesson(
    model: PreTrainedModel, checkpoint: Checkpoint, dense: Checkpoint | None, origins: Origins, recipe: RecoverSlice, options: RunOptions
) -> Lesson:
    """The dense model as teacher, and for hidden states the pairs of blocks that were one; or the text alone."""
    from pipeline.recover.losses.distillation import BlockOutputs, Lesson
    from pipeline.recover.losses.head import Head
    from pipeline.recover.losses.teacher import Teacher

    blocks = blocks_of(model, checkpoint.geometry.family)
    head = Head(model, blocks)
    if dense is None:
        return Lesson(head, whole=recipe.sharded)
    original = dense.geometry
    if original.vocab != checkpoint.geometry.vocab:
        raise TrimlineError(
            f"The dense model predicts {original.vocab} tokens and the smaller one {checkpoint.geometry.vocab}.",
            "Name the dense model that the smaller one was made from.",
        )
    if recipe.hidden_states and original.hidden != checkpoint.geometry.hidden:
        raise narrower_stream()
    loaded = load_model(dense.folder, dtype=options.resolved_dtype(), trust_remote_code=options.trust_remote_code)
    taught = blocks_of(loaded, original.family)
    teacher = Teacher(loaded, taught)
    if not recipe.hidden_states:
        return Lesson(head, teacher, recipe.temperature, whole=recipe.sharded)
    origins.demand_within(len(original.blocks))
    pairs = BlockOutputs.of([taught[number] for number in origins.blocks]), BlockOutputs.of(list(blocks))
    return Lesson(head, teacher, recipe.temperature, recipe.hidden_states, *pairs, whole=recipe.sharded)


def narrower_stream() -> TrimlineError:
    """Hidden states of unlike width have no distance."""
    return TrimlineError(
        "The smaller model's residual stream lost channels, so its hidden states cannot be compared with the dense model's.",
        "Set recover.hidden_states to 0, which leaves the distillation of predictions.",
    )


def _finish(
    student: _Student, checkpoint: Checkpoint, recipe: RecoverSlice, options: RunOptions, out: Path, record: dict[str, Any], events: Events
) -> None:
    """Merges, writes, reopens and proves."""
    from pipeline.recover.gate import demand_settings, gate
    from pipeline.recover.zeros import demand_zeros

    model, merge = student.model, None
    if recipe.kind == "lora":
        from pipeline.recover.adapters import merged

        model, merge = merged(model)
    write_checkpoint(out, checkpoint.whole_config(checkpoint.config), checkpoint.whole_tensors(_stored(model, checkpoint)))
    for path in sorted(checkpoint.folder.glob("*.py")):
        shutil.copyfile(path, out / path.name)
    copy_companions(checkpoint.folder, out, events)
    if (checkpoint.folder / PLAN).is_file():
        shutil.copyfile(checkpoint.folder / PLAN, out / PLAN)
    zeros = demand_zeros(checkpoint, Checkpoint(out))
    settings = demand_settings(checkpoint, out, options)
    outcomes = gate(model, out, options, events)
    write_json(
        out / GATE, {"merged": merge, "zeros": zeros, "settings": settings, "attempts": [outcome.as_record() for outcome in outcomes]}
    )
    write_json(out / RECOVERED, record)
    last = outcomes[-1]
    events.gate(f"recovered = trained: logits within {last.reopened.difference:.2g} ({last.dtype})", zeros=zeros, merged=merge)
    events.note(_result(record))


def _result(record: dict[str, Any]) -> str:
    """What training gave, in a sentence."""
    if "held out" not in record:
        return f"loss {record['losses'][0]['loss']:.3f} → {record['losses'][-1]['loss']:.3f} in {record['taken']} steps"
    first, best = record["held out"][0]["loss"], record["best"]
    return f"held-out loss {first:.3f} → {best['loss']:.3f} at step {best['step']} of {record['taken']}, whose state is written"


@torch.no_grad()
def _stored(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint with its trained value, in the dtype it is stored in; the model gets what was rounded."""
    state = model.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for name, old in checkpoint.tensors():
        tensors[name] = old
        if name in state:
            tensors[name] = state[name].to(device="cpu", dtype=old.dtype)
            state[name].copy_(tensors[name])
    return tensors
