"""How far a choice of sizes takes the model's predictions from a reference: KL divergence, with the choice as zeros in the live model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from pipeline.architecture.spaces import IndexSet
from pipeline.live.blocks import Arguments, blocks_of, brought, enter, logits_from, through_all
from pipeline.prune.allocation.evolution import Levels, Places
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.search.library import Library, LiveReader

HEAD_TOKENS = 1024  # whose predictions over the whole vocabulary are in memory at once

States = list[torch.Tensor]


@dataclass
class JudgingRound:
    """The tokens of one round.

    Attributes:
        batches: of token ids, (B, S) each.
        entering: hidden states that enter the first block, per batch.
        arguments: of every block, per batch and block.
        aims: hidden states that leave the last block of the reference.
    """

    batches: tuple[torch.Tensor, ...]
    entering: States
    arguments: list[list[Arguments]]
    aims: States

    @property
    def tokens(self) -> int:
        return sum(batch.numel() for batch in self.batches)


@dataclass
class SizeJudge:
    """Judges choices on the live model, which is as before when it is over.

    Attributes:
        model: with all units still there.
        library: readers by sublayer and size.
        keys: the sublayers, in the order of a choice's places.
        levels: their sizes.
        rounds: their tokens.
        parent: a choice near to which others are judged: in the first round, blocks before the first difference are not run again.
        passes: tokens that went through all blocks, or as many as that comes to.
    """

    model: ShrinkingModel
    library: Library
    keys: Sequence[IndexSet]
    levels: Levels
    rounds: Sequence[JudgingRound]
    parent: Places | None = None
    passes: float = 0.0
    _traced: Places | None = None
    _trace: list[States] = field(default_factory=list)
    _placed: list[int] = field(default_factory=list)
    _own: dict[tuple[int, str], tuple[torch.Tensor, nn.Parameter | None]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, places: Places, round_: int) -> float:
        """KL(reference ‖ choice), nats per token; infinite where the choice predicts what is no number."""
        part = self.rounds[round_]
        total = 0.0
        for batch, aim, state in zip(part.batches, part.aims, self._leaving(places, round_), strict=True):
            expected, found = self._predictions(batch, aim), self._predictions(batch, state)
            total += torch.nn.functional.kl_div(found, expected, log_target=True, reduction="sum").item()
        loss = total / part.tokens
        return loss if loss == loss else float("inf")

    @contextmanager
    def live(self) -> Iterator[None]:
        """For as long as choices are judged."""
        self._placed = [0] * len(self.keys)
        paging = self.model.paging
        try:
            if paging is None:
                yield
            else:
                with paging.also(self._put_block):
                    yield
        finally:
            if paging is None:
                self._place((0,) * len(self.keys))

    def _leaving(self, places: Places, round_: int) -> States:
        """Hidden states that leave the last block."""
        part = self.rounds[round_]
        if round_ or self.parent is None or self.model.paging is not None:
            return self._through(places, part, 0, part.entering)
        if self._traced != self.parent:
            self._trace = []
            self._through(self.parent, part, 0, part.entering, self._trace)
            self._traced = self.parent
        differ = [key.block for key, one, other in zip(self.keys, places, self.parent, strict=True) if one != other]
        first = min(differ, default=len(self._trace) - 1)
        return self._through(places, part, first, self._trace[first])

    def _through(self, places: Places, part: JudgingRound, first: int, states: States, trace: list[States] | None = None) -> States:
        """Runs the blocks from ``first`` on; ``trace`` gets what enters each, and what leaves the last."""
        self._place(places)
        blocks = blocks_of(self.model.model, self.model.geometry.family)
        for number in range(first, len(blocks)):
            if trace is not None:
                trace.append(states)
            states, given = brought(blocks[number], states, [of_batch[number] for of_batch in part.arguments])
            states = through_all(blocks[number], states, given)
        if trace is not None:
            trace.append(states)
        self.passes += part.tokens * (len(blocks) - first) / len(blocks)
        return states

    def _predictions(self, batch: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return predictions(self.model.model, self.model, batch, state)

    def _place(self, places: Places) -> None:
        """Puts a choice into the live model; into blocks that are paged, when they are read."""
        changed = [number for number, place in enumerate(places) if place != self._placed[number]]
        self._placed = list(places)
        if self.model.paging is not None:
            self.model.paging.leave()
            return
        for number in changed:
            self._put(number)

    def _put_block(self, block: int) -> None:
        for number, key in enumerate(self.keys):
            if key.block == block and self._placed[number]:
                self._put(number)

    def _put(self, number: int) -> None:
        key, place = self.keys[number], self._placed[number]
        block = blocks_of(self.model.model, self.model.geometry.family)[key.block]
        for reader in self.library.readers(key, self.levels.sizes[number][place]):
            live = block.get_submodule(reader.linear.name)
            assert isinstance(live, nn.Linear)
            if self.model.paging is not None:
                _hold(live, reader)
                continue
            own = self._own.setdefault((key.block, reader.linear.name), (live.weight.data, live.bias))
            if place:
                _hold(live, reader)
            else:
                live.weight.data = own[0]
                live.register_parameter("bias", own[1])


def _hold(live: nn.Linear, reader: LiveReader) -> None:
    """The reader's values in a live projection, without touching the values that were there."""
    live.weight.data = reader.weight.to(live.weight)
    if reader.bias is not None:
        live.bias = nn.Parameter(reader.bias.to(live.weight), requires_grad=False)


def predictions(live: nn.Module, model: ShrinkingModel, batch: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next tokens, (B, S, V), from hidden states that leave the last block."""
    return logits_from(live, model.geometry.family, batch.to(state.device), state).float().log_softmax(-1)


@torch.no_grad()
def rounds_on(model: ShrinkingModel, reference: nn.Module, windows: torch.Tensor, tokens: Sequence[int]) -> list[JudgingRound]:
    """The tokens of every round: as many of the first windows as come nearest to what is asked for, at least one.

    Args:
        model: whose choices are judged.
        reference: that predictions are compared with.
        windows: calibration tokens, shape (N, S).
        tokens: of each round.
    """
    length, found = windows.shape[1], []
    for asked in tokens:
        batches = windows[: max(1, round(asked / length))].split(max(1, HEAD_TOKENS // length))
        entering, arguments = enter(model.model, model.geometry.family, batches)
        found.append(JudgingRound(batches, entering, arguments, _leaving(reference, model, batches)))
    return found


def _leaving(reference: nn.Module, model: ShrinkingModel, batches: tuple[torch.Tensor, ...]) -> States:
    states, arguments = enter(reference, model.geometry.family, batches)
    for number, block in enumerate(blocks_of(reference, model.geometry.family)):
        states, given = brought(block, states, [of_batch[number] for of_batch in arguments])
        states = through_all(block, states, given)
    return states
