"""transformers' Trainer, set up from the recipe: steps, schedule, devices, states to go on from, events."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import quiet_transformers
from pipeline.recover.data import WindowDataset
from pipeline.recover.distillation import DistillationTrainer, Lesson
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.resuming import KEPT, Sealer, last_whole
from pipeline.recover.sharded import ShardingTrainer, fsdp_settings

POINTS = 100  # on the curve of losses
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train(
    model: nn.Module,
    windows: torch.Tensor,
    recipe: RecoverSlice,
    options: RunOptions,
    work: Path,
    events: Events,
    blocks: nn.ModuleList,
    lesson: Lesson | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> tuple[list[dict[str, float]], nn.Module]:
    """Trains ``model`` in place, from the last whole state in ``work`` on.

    Args:
        model: fp32, on the CPU; what requires a gradient is trained, where the Trainer puts it.
        windows: token ids, shape (N, S).
        recipe: what and how long.
        options: device and dtype; in bf16 the products are computed in it, weights and optimiser stay fp32.
        work: for states; belongs to this training alone.
        events: one progress step per optimiser step.
        blocks: the decoder blocks of ``model``.
        lesson: for distillation; the text's cross-entropy without one.
        callbacks: more of them.

    Returns:
        The curve: step, loss, learning rate; and the trained model, which is ``model`` unless it was sharded.

    Raises:
        TrimlineError: the loss is not finite, or batch and devices do not fit.
    """
    state = last_whole(work)
    with quiet_transformers(), events.progress(f"training, {recipe.steps} steps", recipe.steps) as advance, _torch_errors(work, state):
        arguments = training_arguments(recipe, options, work, blocks)
        if lesson:
            lesson.teacher.to(arguments.device)
        trainer = (partial(DistillationTrainer, lesson=lesson) if lesson else ShardingTrainer)(
            model=model,
            args=arguments,
            train_dataset=WindowDataset(windows),
            callbacks=[*callbacks, Sealer(), Progress(advance)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
    trained: Any = trainer.model
    return curve(trainer.state.log_history), trained


def training_arguments(recipe: RecoverSlice, options: RunOptions, work: Path, blocks: nn.ModuleList) -> TrainingArguments:
    """What the Trainer is told.

    Args:
        recipe, options, work: as of ``train``.
        blocks: the decoder blocks of what is trained.

    Raises:
        TrimlineError: the batch is no multiple of what the devices hold at once.
    """
    at_once = min(recipe.micro_batch, recipe.batch)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=recipe.steps,
        per_device_train_batch_size=at_once,
        learning_rate=recipe.peak_learning_rate,
        lr_scheduler_type=SCHEDULES[recipe.schedule],
        warmup_steps=round(recipe.warm_up * recipe.steps),
        weight_decay=recipe.weight_decay,
        optim="adamw_torch",
        seed=recipe.seed,
        bf16=options.resolved_dtype() is torch.bfloat16,
        use_cpu=options.device == "cpu",
        dataloader_pin_memory=options.device != "cpu",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        logging_steps=math.ceil(recipe.steps / POINTS),
        logging_nan_inf_filter=False,
        save_steps=recipe.save_every,
        save_total_limit=KEPT,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
        **(fsdp_settings(blocks) if recipe.sharded else {}),
    )
    # One process drives one device; several devices take several processes (torchrun), never threads of one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    together = at_once * arguments.world_size
    if recipe.batch % together:
        raise TrimlineError(
            f"A batch of {recipe.batch} windows cannot be shared by {arguments.world_size} processes with {at_once} windows each.",
            f"Set recover.batch to a multiple of {together}, or change recover.micro_batch.",
        )
    arguments.gradient_accumulation_steps = recipe.batch // together
    return arguments


def curve(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The Trainer's log without what was measured by the clock."""
    named = ("step", "loss", "learning_rate")
    return [{name: entry[name] for name in named} for entry in history if "loss" in entry]


class Progress(TrainerCallback):
    """Tells how far training is, and stops it where it diverges."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Steps of an earlier process."""
        if state.global_step:
            self._advance(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more."""
        self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called with the mean loss since the last time."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise TrimlineError(f"The training diverged: its loss is {loss} at step {state.global_step}.", "Lower recover.learning_rate.")


@contextmanager
def _torch_errors(work: Path, state: Path | None) -> Iterator[None]:
    """What torch says of files that it cannot write or read, as everybody else says it."""
    try:
        yield
    except Exception as error:
        if "PytorchStreamWriter" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work)) from error
        if type(error).__name__ == "UnpicklingError":
            raise TrimlineError(f"The saved state {state} cannot be read.", f"Remove {work} to train from the start.") from error
        raise
