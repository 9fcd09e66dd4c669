"""Training towards the dense model: its predictions (Hinton et al. 2015, arXiv 1503.02531) and, if wanted, its hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.recover.sharded import ShardingTrainer


def prediction_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher ‖ student) of the softened predictions, mean over tokens, times temperature²; nats, scalar.

    The factor keeps gradients of one size whatever the temperature (section 2 of the paper).

    Args:
        student, teacher: logits, shape (..., vocabulary).
        temperature: divides both.
    """
    expected = (teacher.float() / temperature).log_softmax(-1)
    found = (student.float() / temperature).log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).mean() * temperature**2


def state_distance(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over blocks and tokens of ‖h' − h‖² / ‖h‖²; scalar.

    Relative to each token, because the residual stream of a few tokens is a hundred times longer than that of the others.

    Args:
        student, teacher: outputs h', h of blocks that belong together, shape (..., H) each.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([((s.float() - t.float()).square().sum(-1) / t.float().square().sum(-1)).mean() for s, t in pairs]).mean()


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
            self.states.append(output[0] if isinstance(output, tuple) else output)

        return take


@dataclass(frozen=True)
class Lesson:
    """What the dense model teaches.

    Attributes:
        teacher: it, in evaluation mode.
        temperature: of the predictions.
        weight: of ``state_distance`` beside ``prediction_divergence``; 0 leaves it out.
        taught, seen: outputs of the teacher's and the student's blocks that belong together.
    """

    teacher: nn.Module
    temperature: float
    weight: float = 0.0
    taught: BlockOutputs = field(default_factory=BlockOutputs)
    seen: BlockOutputs = field(default_factory=BlockOutputs)

    def loss(self, student: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
        """Of one batch of token ids (N, S); scalar."""
        with torch.no_grad():
            expected = self.teacher(input_ids=token_ids, use_cache=False).logits
        divergence = prediction_divergence(student(input_ids=token_ids, use_cache=False).logits, expected, self.temperature)
        return divergence + self.weight * state_distance(self.seen.states, self.taught.states) if self.weight else divergence


class DistillationTrainer(ShardingTrainer):
    """transformers' Trainer with the dense model's lesson for a loss."""

    def __init__(self, *, lesson: Lesson, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._lesson = lesson
        # The loss is a mean over the batch, so the Trainer divides it by the number of batches per step.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """As the Trainer calls it; windows have no padding, so every token counts."""
        loss = self._lesson.loss(model, inputs["input_ids"])
        return (loss, {"loss": loss}) if return_outputs else loss
