"""One model with several choices of experts, read side by side: block after block, so that each is in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.architecture.families import Family
from pipeline.common.events import Events
from pipeline.evaluate.agreement import compared
from pipeline.evaluate.perplexity import perplexity_record
from pipeline.live.blocks import blocks_of, brought, enter, logits_from, through_all
from pipeline.live.routing import forbidden

Gone = Mapping[int, Sequence[int]]  # by number of a block, the experts that cannot be chosen


@dataclass
class JudgedChoice:
    """What one choice gave, window by window.

    Attributes:
        losses: nats per predicted token.
        divergences: mean KL(dense ‖ this) of the predictions, nats; empty where there was no dense model beside.
        same_best: share of positions at which both hold the same token for the likeliest; likewise.
    """

    losses: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same_best: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Perplexity with its error, and means over windows, which are all of one length.

        Raises:
            TrimlineError: a loss is no number.
        """
        return perplexity_record(self.losses) | {"divergence": _mean(self.divergences), "same_best": _mean(self.same_best)}


@torch.inference_mode()
def judged(
    model: nn.Module, family: Family, windows: torch.Tensor, choices: Sequence[Gone], dense: nn.Module | None, events: Events
) -> list[JudgedChoice]:
    """Loss of every choice, and how far its predictions are from the dense model's.

    Args:
        model: whose experts are forbidden, choice by choice; it ends as it was.
        family: of it.
        windows: tokens, shape (N, S), S − 1 predictions each.
        choices: what cannot be chosen.
        dense: what predictions are compared with; it may be ``model``, and None compares with nothing.
        events: progress.
    """
    everything: list[Gone] = [{}]
    if dense is model:
        theirs, *ours = _through(model, family, windows, [*everything, *choices], events)
    else:
        (theirs,) = _through(dense, family, windows, everything, events) if dense is not None else ([],)
        ours = _through(model, family, windows, choices, events)
    found = [JudgedChoice() for _ in choices]
    with events.progress(f"predictions with {len(choices)} counts of experts", len(windows)) as advance:
        for number, window in enumerate(windows):
            expected = None if dense is None else _logits(dense, family, window, theirs[number])
            for one, states in zip(found, ours, strict=True):
                logits = _logits(model, family, window, states[number])
                one.losses.append(torch.nn.functional.cross_entropy(logits.float(), window[1:].to(logits.device)).item())
                if expected is not None:
                    divergence, same = compared(logits, expected.to(logits.device))
                    one.divergences.append(divergence)
                    one.same_best.append(same)
            advance(1)
    return found


def _through(model: nn.Module, family: Family, windows: torch.Tensor, choices: Sequence[Gone], events: Events) -> list[list[torch.Tensor]]:
    """What leaves the last block, choice by choice and window by window."""
    entered, arguments = enter(model, family, windows.split(1))
    blocks = blocks_of(model, family)
    states = [list(entered) for _ in choices]
    with events.progress(f"{len(choices)} choices of experts over {windows.numel():,} tokens", len(blocks)) as advance:
        for number, block in enumerate(blocks):
            given = [own[number] for own in arguments]
            for place, gone in enumerate(choices):
                there, beside = brought(block, states[place], given)
                with forbidden(block, family, gone.get(number, ())):
                    states[place] = through_all(block, there, beside)
            advance(1)
    return states


def _logits(model: nn.Module, family: Family, window: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Predictions (S − 1, V) of a window whose states have left the last block."""
    device = next(parameter.device for parameter in model.parameters() if parameter.device.type != "meta")
    return logits_from(model, family, window[None].to(device), state)[0, :-1]


def gone_of(kept: Mapping[int, Sequence[int]], experts: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """What cannot be chosen, from what stays and how many each block has."""
    return {block: tuple(sorted(set(range(experts[block])) - set(units))) for block, units in kept.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
