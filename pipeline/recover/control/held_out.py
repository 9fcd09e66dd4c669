"""Held-out loss at intervals: the best state is kept, and training stops where the loss no longer falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.common.files import read_json, write_json
from pipeline.recover.processes import first_process
from pipeline.recover.resuming import KEPT
from pipeline.recover.sharded import local
from pipeline.tensors.tensorfile import save_tensors

CURVE = "held_out.json"
EVALUATIONS = 10  # of a training, where the recipe names no interval


@dataclass
class HeldOutCurve:
    """Held-out loss by step; the first is that of the model as it came.

    Attributes:
        points: step and loss, nats per predicted token.
        stopped: the step at which the training was ended early; None where it was not.
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    stopped: int | None = None

    @property
    def best(self) -> tuple[int, float]:
        """The earliest of the lowest."""
        return min(self.points, key=lambda point: (point[1], point[0]))

    @property
    def worse_in_a_row(self) -> int:
        """Evaluations since the best one."""
        return sum(step > self.best[0] for step, _ in self.points)

    def as_record(self) -> dict[str, Any]:
        """For recover.json."""
        step, loss = self.best
        points = [{"step": at, "loss": value} for at, value in self.points]
        return {"held out": points, "best": {"step": step, "loss": loss}, "stopped": self.stopped}


class HeldOut(TrainerCallback):
    """Evaluates, keeps the best state beside the Trainer's own, and says when it is enough."""

    def __init__(self, measure: Callable[[nn.Module], float], every: int, patience: int, work: Path, keeps: bool, report: Any) -> None:
        """Of one training.

        Args:
            measure: held-out loss of what is trained.
            every: steps between evaluations; there is one before the first step, and one after the last.
            patience: evaluations in a row that are not better than the best, after which training ends.
            work: folder of this training alone.
            keeps: whether this process has states to keep: its part where weights are shared, all where it is the first.
            report: told the step and the loss.
        """
        self.curve = HeldOutCurve()
        self._saved: list[int] = []  # best steps as they were when the Trainer saved
        self._measure, self._every, self._patience, self._work, self._keeps, self._report = measure, every, patience, work, keeps, report

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """The model as it came, or the curve up to the state that is gone on from."""
        if state.global_step:
            known = read_json(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / CURVE)
            self.curve = HeldOutCurve([(point["step"], point["loss"]) for point in known["points"]])
            self._saved = [self.curve.best[0]]
        else:
            self._evaluate(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Every so many steps, and after the last."""
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        self._evaluate(model, state.global_step)
        if self.curve.worse_in_a_row >= self._patience and state.global_step < state.max_steps:
            self.curve.stopped = state.global_step
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """The curve goes with the Trainer's state; best states that no kept one can need go."""
        if state.is_world_process_zero:
            points = [{"step": step, "loss": loss} for step, loss in self.curve.points]
            write_json(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / CURVE, {"points": points})
        self._saved = [*self._saved, self.curve.best[0]][-KEPT:]
        for path in self._files():
            if path not in map(self._place, self._saved):
                path.unlink(missing_ok=True)

    def restore(self, model: nn.Module) -> None:
        """Puts the best state back into what was trained."""
        step, _ = self.curve.best
        if self._keeps and step != self.curve.points[-1][0]:
            known = load_file(self._place(step))
            with torch.no_grad():
                for name, parameter in _trained(model).items():
                    local(parameter).copy_(known[name])
        for path in self._files():
            path.unlink(missing_ok=True)

    def _evaluate(self, model: nn.Module, step: int) -> None:
        loss = _same_everywhere(self._measure(model), model)
        self.curve.points.append((step, loss))
        self._report(step, loss)
        if self._keeps and self.curve.best[0] == step:
            self._work.mkdir(parents=True, exist_ok=True)
            beside = self._place(step).with_suffix(".part")
            save_tensors(beside, {name: local(parameter).detach().cpu() for name, parameter in _trained(model).items()})
            beside.replace(self._place(step))

    def _files(self) -> list[Path]:
        return sorted(self._work.glob(f"best-*-{_rank()}.safetensors"))

    def _place(self, step: int) -> Path:
        return self._work / f"best-{step}-{_rank()}.safetensors"


def interval(steps: int, asked: int | None) -> int:
    """Steps between evaluations."""
    return asked or math.ceil(steps / EVALUATIONS)


def keeps_states(shared: bool) -> bool:
    """Whether this process keeps best states."""
    return shared or first_process()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _same_everywhere(loss: float, model: nn.Module) -> float:
    """What the first process found, in all of them: they have to stop together."""
    if not torch.distributed.is_initialized():
        return loss
    told = torch.tensor(loss, dtype=torch.float64, device=next(model.parameters()).device)
    torch.distributed.broadcast(told, 0)
    return told.item()
