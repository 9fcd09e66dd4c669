"""How near a model's predictions are to the dense model's, on tokens that are text: loss, divergence, and the same best token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.common.events import Events
from pipeline.evaluate.positions import ReadWindow, reading

ROWS = 256  # positions whose divergence is computed at once


@dataclass(frozen=True)
class Agreement:
    """Of one window.

    Attributes:
        read: the model's loss, whole and by position.
        divergence: mean KL(dense ‖ model) of the predictions, nats.
        same_best: share of positions at which both hold the same token for the likeliest.
    """

    read: ReadWindow
    divergence: float
    same_best: float


@torch.inference_mode()
def window_agreements(model: nn.Module, dense: nn.Module, windows: torch.Tensor, events: Events) -> list[Agreement]:
    """Each window (N, S) read by both models; S − 1 predictions each."""
    found = []
    with events.progress(f"perplexity and agreement over {windows.numel():,} tokens", len(windows)) as advance:
        for window in windows:
            ours, theirs = (_logits(one, window) for one in (model, dense))
            found.append(Agreement(reading(ours, window[1:].to(ours.device)), *compared(ours, theirs.to(ours.device))))
            advance(1)
    return found


def agreement_record(found: Sequence[Agreement]) -> dict[str, float]:
    """Means over windows, which are all of one length."""
    return {
        "divergence": sum(one.divergence for one in found) / len(found),
        "same_best": sum(one.same_best for one in found) / len(found),
    }


def _logits(model: nn.Module, window: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    found: torch.Tensor = model(input_ids=window[None].to(device), use_cache=False).logits[0, :-1]
    return found


def compared(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Mean KL(dense ‖ model), nats, and the share of positions with the same best token; ``ours`` of the model, ``theirs`` dense, (T, V)."""
    divergence, same = 0.0, 0
    for part, dense in zip(ours.split(ROWS), theirs.split(ROWS), strict=True):
        expected, found = dense.float().log_softmax(-1), part.float().log_softmax(-1)
        divergence += (expected.exp() * (expected - found)).sum(-1).double().sum().item()
        same += int((part.argmax(-1) == dense.argmax(-1)).sum())
    return divergence / len(ours), same / len(ours)
