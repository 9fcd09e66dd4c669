"""transformers' Trainer, set up from the recipe: steps, schedule, devices, states to go on from, events."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import quiet_transformers
from pipeline.recover.control.held_out import HeldOut, interval, keeps_states
from pipeline.recover.data import WindowDataset
from pipeline.recover.losses.distillation import Lesson, LessonTrainer
from pipeline.recover.losses.expected import is_plain
from pipeline.recover.losses.teacher import room_for
from pipeline.recover.processes import processes
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.resuming import KEPT, Sealer, last_whole
from pipeline.recover.sharded import fsdp_settings
from pipeline.sources.packed import Packed

POINTS = 100  # on the curve of losses
AGAIN = 2  # readings of a window from which on expectations cost less than states
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train(
    model: nn.Module,
    drawn: Packed,
    recipe: RecoverSlice,
    options: RunOptions,
    work: Path,
    events: Events,
    blocks: nn.ModuleList,
    lesson: Lesson,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> tuple[dict[str, Any], nn.Module]:
    """Trains ``model`` in place, from the last whole state in ``work`` on.

    Args:
        model: fp32, on the CPU; what requires a gradient is trained, where the Trainer puts it.
        drawn: windows to train on, and those held out.
        recipe: what and how long.
        options: device and dtype; in bf16 the products are computed in it, weights and optimiser stay fp32.
        work: for states; belongs to this training alone.
        events: one progress step per optimiser step.
        blocks: the decoder blocks of ``model``.
        lesson: the loss.
        callbacks: more of them.

    Returns:
        What recover.json says: steps taken, the curve (step, loss, learning rate), held-out losses; and the trained model, with its best
        state, which is ``model`` unless it was sharded.

    Raises:
        TrimlineError: the loss is not finite, or batch and devices do not fit.
    """
    state = last_whole(work)
    arguments = training_arguments(recipe, options, work, blocks)
    if lesson.teacher:
        lesson.teacher.model.to(arguments.device)
        if keeps_teacher(recipe, lesson, drawn, work):
            again = recipe.steps * recipe.batch >= AGAIN * len(drawn.windows) and is_plain(lesson.head)
            expects = (lesson.head.weight.detach().to(arguments.device), recipe.temperature) if again else None
            lesson.teacher.keep(torch.cat((drawn.windows, drawn.apart)), work, events, expects)
    watching = _watching(drawn, recipe, lesson, work, events)
    with quiet_transformers(), events.progress(f"training, {recipe.steps} steps", recipe.steps) as advance, _torch_errors(work, state):
        trainer = LessonTrainer(
            lesson=lesson,
            model=model,
            args=arguments,
            train_dataset=WindowDataset(drawn),
            callbacks=[*callbacks, *([watching] if watching else []), Sealer(), Progress(advance)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
    trained: Any = trainer.model
    found = {"taken": trainer.state.global_step, "losses": curve(trainer.state.log_history)}
    if watching:
        found |= watching.curve.as_record()
        watching.restore(trained)
    return found, trained


def keeps_teacher(recipe: RecoverSlice, lesson: Lesson, drawn: Packed, work: Path) -> bool:
    """Whether the teacher's states go on disk: as the recipe says, or where one process trains, nothing else of the teacher is asked
    for, and the disk has room."""
    if recipe.teacher_states != "auto" or lesson.teacher is None or recipe.hidden_states or processes() > 1:
        return recipe.teacher_states == "kept"
    return room_for(lesson.teacher.bytes_of(torch.cat((drawn.windows, drawn.apart))), work)


def _watching(drawn: Packed, recipe: RecoverSlice, lesson: Lesson, work: Path, events: Events) -> HeldOut | None:
    """Who looks at the held-out windows; None where there are none."""
    if not len(drawn.apart):
        return None
    numbers = torch.arange(len(drawn.windows), len(drawn.windows) + len(drawn.apart))
    batches = list(zip(drawn.apart.split(recipe.micro_batch), numbers.split(recipe.micro_batch), strict=True))

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        trains, device = model.training, next(model.parameters()).device
        model.eval()
        losses = [lesson.loss(model, tokens.to(device), them).item() * len(tokens) for tokens, them in batches]
        model.train(trains)
        return sum(losses) / len(drawn.apart)

    def report(step: int, loss: float) -> None:
        events.note(f"held-out loss {loss:.4f} at step {step}")

    every = interval(recipe.steps, recipe.evaluate_every)
    return HeldOut(measure, every, recipe.patience, work, keeps_states(recipe.sharded), report)


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
