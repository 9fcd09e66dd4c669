"""The losses as the Trainer asks for them: the text's, or the distance from the dense model (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.live.blocks import states_of
from pipeline.recover.losses.divergence import judged_divergence, judged_text, prediction_divergence, state_distance
from pipeline.recover.losses.expected import expected_divergence
from pipeline.recover.losses.head import Head
from pipeline.recover.losses.parts import Judge, Judged, mean_in_parts, positions_at_once
from pipeline.recover.losses.teacher import Teacher
from pipeline.recover.sharded import ShardingTrainer


@dataclass
class BlockOutputs:
    """What some blocks put out in the last forward pass."""

    states: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, blocks: Sequence[nn.Module]) -> BlockOutputs:
        """Watches blocks that run in the order given, for as long as they live."""
        outputs = cls()
        for number, block in enumerate(blocks):
            block.register_forward_hook(outputs._taker(number))
        return outputs

    def _taker(self, number: int) -> Callable[..., None]:
        def take(_: nn.Module, inputs: Any, output: Any) -> None:
            if number == 0:
                self.states.clear()
            self.states.append(states_of(output))

        return take


@dataclass(frozen=True)
class Lesson:
    """What is to be learnt.

    Attributes:
        head: of what is trained.
        teacher: the dense model; None where the text itself teaches.
        temperature: of the predictions.
        weight: of ``state_distance`` beside the divergence of predictions; 0 leaves it out.
        taught, seen: outputs of the teacher's and the student's blocks that belong together.
        whole: logits of all positions at once, as a model needs whose head is spread over processes.
    """

    head: Head
    teacher: Teacher | None = None
    temperature: float = 1.0
    weight: float = 0.0
    taught: BlockOutputs = field(default_factory=BlockOutputs)
    seen: BlockOutputs = field(default_factory=BlockOutputs)
    whole: bool = False

    def loss(self, student: nn.Module, token_ids: torch.Tensor, numbers: torch.Tensor | None = None) -> torch.Tensor:
        """Of one batch; scalar, a mean over what is predicted.

        Args:
            student: what is trained, as the Trainer wrapped it.
            token_ids: (N, S).
            numbers: of the windows, by which the teacher's states are kept; (N,).
        """
        if self.whole:
            return self._of_all(student, token_ids)
        expected = None if self.teacher is None else self.teacher.states(token_ids, numbers)
        states = self.head.entering(lambda: student(input_ids=token_ids, use_cache=False))
        distance = state_distance(list(self.seen.states), list(self.taught.states)) if self.weight else None
        flat = states.flatten(0, 1)
        if self.teacher is not None and self.teacher.expects and expected is not None:
            return expected_divergence(flat, expected.flatten(0, 1), self.head.weight, self.temperature)
        judge, counted = self._judge(expected, token_ids)
        loss = mean_in_parts(judge, flat, positions_at_once(self.head.weight.shape[0]), self.head.trained) * (len(flat) / counted)
        return loss if distance is None else loss + self.weight * distance

    def _judge(self, expected: torch.Tensor | None, token_ids: torch.Tensor) -> tuple[Judge, int]:
        """What judges a part, and how many positions count."""
        if expected is None:
            targets = torch.nn.functional.pad(token_ids[:, 1:], (0, 1), value=-1).flatten()
            return lambda states, part: judged_text(self.head.logits(states), targets[part]), int((targets >= 0).sum())
        teacher, taught = self.teacher, expected.flatten(0, 1)
        assert teacher is not None

        def judge(states: torch.Tensor, part: slice) -> Judged:
            with torch.no_grad():
                known = teacher.head.logits(taught[part])
            return judged_divergence(self.head.logits(states), known, self.temperature)

        return judge, len(taught)

    def _of_all(self, student: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
        if self.teacher is None:
            found: torch.Tensor = student(input_ids=token_ids, labels=token_ids, use_cache=False).loss
            return found
        with torch.no_grad():
            expected = self.teacher.model(input_ids=token_ids, use_cache=False).logits
        divergence = prediction_divergence(student(input_ids=token_ids, use_cache=False).logits, expected, self.temperature)
        return divergence + self.weight * state_distance(self.seen.states, self.taught.states) if self.weight else divergence


class LessonTrainer(ShardingTrainer):
    """transformers' Trainer with a lesson for a loss."""

    def __init__(self, *, lesson: Lesson, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._lesson = lesson
        # The loss is a mean over the batch, so the Trainer divides it by the number of batches per step.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """As the Trainer calls it; windows have no padding, so every token counts."""
        loss = self._lesson.loss(model, inputs["input_ids"], inputs.get("number"))
        return (loss, {"loss": loss}) if return_outputs else loss
