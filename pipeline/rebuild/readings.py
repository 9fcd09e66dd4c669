"""What a gate between two checkpoints has both of them read, and how: tokens, positions, blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.architecture.families import Family
from pipeline.evaluate.gates import (
    BEYOND_WINDOW,
    LogitDifference,
    attention_window,
    compare_logits,
    gate_tokens,
    late_positions,
    row_past_window,
)
from pipeline.live.blocks import blocks_of

GREEDY_TOKENS = 32
PROMPT_TOKENS = 16
ROW_TOKENS = 48
LONG_ROW = 512  # tokens; a longer row goes through one block of every attention type, with the others left out


@dataclass(frozen=True)
class GateReading:
    """One forward pass.

    Attributes:
        name: for messages and gate.json.
        tokens: ids (rows, tokens).
        positions: of every token, (tokens,); None counts from 0.
        blocks: numbers of the blocks that are read through, in the dense model; None is all.
        last: positions whose logits count, from the end; None is all.
        given: further arguments of the model: an image.
    """

    name: str
    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    blocks: tuple[int, ...] | None = None
    last: int | None = None
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def renumbered(self, kept: Sequence[int]) -> GateReading:
        """The same for the model that keeps those blocks of the dense one."""
        return self if self.blocks is None else replace(self, blocks=tuple(kept.index(block) for block in self.blocks))


def readings_for(config: PretrainedConfig, mixing: Sequence[int], device: str) -> list[GateReading]:
    """Rows of random tokens at the first positions; a row at positions up to the last promised one; and where blocks have
    a sliding window, a row that goes past it.

    Args:
        config: of the reference, as transformers has it; a larger model's, or its language model's.
        mixing: blocks that keep their attention, or another mixer of tokens.
        device: where the tokens go.
    """
    config = config.get_text_config()
    vocabulary, promised = int(config.vocab_size), int(config.max_position_embeddings)

    def tokens(rows: int, length: int, seed: int) -> torch.Tensor:
        return gate_tokens(vocabulary, rows, length, seed).to(device)

    late = late_positions(promised, ROW_TOKENS).to(device)
    readings = [
        GateReading("first positions", tokens(2, min(ROW_TOKENS, promised), 0)),
        GateReading("up to the last position", tokens(1, len(late), 1), late),
    ]
    past = row_past_window(attention_window(config), promised)
    if past is not None and past > ROW_TOKENS:
        blocks = tuple(_one_of_every_type(config, mixing)) if past > LONG_ROW else None
        readings.append(GateReading("past the sliding window", tokens(1, past, 2), blocks=blocks, last=BEYOND_WINDOW))
    return readings


def _one_of_every_type(config: PretrainedConfig, blocks: Sequence[int]) -> Iterator[int]:
    """The first block of every attention type, ascending."""
    types, seen = getattr(config, "layer_types", None), set[str]()
    for block in blocks:
        kind = "" if types is None else types[block]
        if kind not in seen:
            seen.add(kind)
            yield block


@torch.inference_mode()
def logits_of(model: PreTrainedModel, family: Family, reading: GateReading) -> torch.Tensor:
    """Logits (rows, positions, vocabulary) of what counts."""
    given = {name: tensor.to(model.dtype) if tensor.is_floating_point() else tensor for name, tensor in reading.given.items()}
    if reading.positions is not None:
        # With a mask of ones, jumps in positions are not taken for several texts in one row.
        given |= {"position_ids": reading.positions.expand(reading.tokens.shape), "attention_mask": torch.ones_like(reading.tokens)}
    with _only(model, family, reading.blocks):
        return model(reading.tokens, use_cache=False, logits_to_keep=reading.last or 0, **given).logits


def cache_comparison(model: PreTrainedModel, tokens: torch.Tensor) -> LogitDifference:
    """Greedy decoding with the KV cache, of as many tokens as the model has positions for, against one forward without it.

    Args:
        model: in evaluation mode.
        tokens: ids (rows, positions); the first ones are the prompt.
    """
    promised = int(model.config.get_text_config().max_position_embeddings)
    prompt = tokens[:, : min(PROMPT_TOKENS, promised // 2)]
    sequence, steps, past = prompt, [], None
    with torch.inference_mode():
        for _ in range(min(GREEDY_TOKENS, promised - prompt.shape[1])):
            output = model(sequence if past is None else sequence[:, -1:], past_key_values=past, use_cache=True)
            past = output.past_key_values
            steps.append(output.logits[:, -1])
            sequence = torch.cat((sequence, steps[-1].argmax(-1, keepdim=True)), dim=1)
        whole = model(sequence[:, :-1], use_cache=False).logits[:, prompt.shape[1] - 1 :]
    return compare_logits(whole, torch.stack(steps, dim=1))


@torch.inference_mode()
def decoded(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (rows, steps, vocabulary) of given tokens, with the cache: a prompt at once, and then one after the other.

    Args:
        model: in evaluation mode.
        tokens: ids (rows, positions); the first ones are the prompt.
    """
    prompt = min(PROMPT_TOKENS, tokens.shape[1] // 2)
    output = model(tokens[:, :prompt], use_cache=True)
    steps = [output.logits[:, -1]]
    for place in range(prompt, tokens.shape[1]):
        output = model(tokens[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
        steps.append(output.logits[:, -1])
    return torch.stack(steps, dim=1)


@contextmanager
def _only(model: PreTrainedModel, family: Family, kept: Sequence[int] | None) -> Iterator[None]:
    """All blocks but those of these numbers hand their input on; None leaves the model as it is."""
    left_out = [] if kept is None else [block for number, block in enumerate(blocks_of(model, family)) if number not in kept]
    before = [block.__dict__.get("forward") for block in left_out]
    for block in left_out:
        block.forward = _hand_on_in_tuple if family.gives_tuple else _hand_on
    try:
        yield
    finally:
        for block, forward in zip(left_out, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _hand_on(hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return hidden


def _hand_on_in_tuple(hidden: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
    return (hidden,)
