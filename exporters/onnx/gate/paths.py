"""Every way that a program may take through a graph: what went in, and the logits that came out.

Nothing is compared here, so that a graph can be closed before what it is compared with is opened: one model in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from exporters.decoder import GraphDecoder
from exporters.onnx.running.genai import GenaiDecoder

GREEDY_TOKENS = 64
GENAI = "onnxruntime-genai"


@dataclass(frozen=True)
class RowGroup:
    """Rows of one length.

    Attributes:
        ids: all that was read, (rows, tokens).
        positions: of the logits, counted from the start of the row.
        logits: (rows, positions, vocabulary).
    """

    ids: torch.Tensor
    positions: tuple[int, ...]
    logits: torch.Tensor


@dataclass(frozen=True)
class GraphPath:
    """One path. ``greedy``: the ids after the prompt are the graph's own choice."""

    name: str
    parts: tuple[RowGroup, ...]
    greedy: bool = False


def at_once(decoder: GraphDecoder, ids: torch.Tensor) -> GraphPath:
    """No past, every position."""
    return GraphPath("without cache", (_pieces(decoder, ids, [(0, ids.shape[1])]),))


def walks(decoder: GraphDecoder, ids: torch.Tensor, prompt: torch.Tensor) -> Iterator[GraphPath]:
    """The paths that need a cache; ``ids`` are two rows, ``prompt`` one."""
    half, third = ids.shape[1] // 2, max(1, ids.shape[1] // 3)
    steps = [(0, half), *((at, at + 1) for at in range(half, ids.shape[1]))]
    yield GraphPath("with cache, token by token", (_pieces(decoder, ids, steps),))
    chunks = [(at, min(at + third, ids.shape[1])) for at in range(0, ids.shape[1], third)]
    yield GraphPath("with cache, in chunks", (_pieces(decoder, ids[:1], chunks),))
    yield GraphPath("rows of unequal length", _ragged(decoder, ids))
    yield GraphPath(f"{GREEDY_TOKENS} greedy tokens", (_greedy(decoder, prompt),), greedy=True)


def through_genai(genai: GenaiDecoder, ids: torch.Tensor, last: Sequence[int] = ()) -> Iterator[GraphPath]:
    """One row of ids in onnxruntime-genai: half of it as a prompt, the rest token by token; then prompts that end with ``last``.

    Args:
        last: tokens that end or pad texts, which a runtime may take to be no part of a prompt.
    """
    half = len(ids) // 2
    found = genai.forced(ids[:half].tolist(), ids[half:].tolist())
    yield GraphPath(GENAI, (RowGroup(ids[None], tuple(range(half - 1, len(ids))), torch.from_numpy(found)[None]),))
    prompts = [torch.cat([ids[: half - 2], torch.tensor([token, token])]) for token in last]
    parts = (RowGroup(prompt[None], (half - 1,), torch.from_numpy(genai.forced(prompt.tolist(), []))[None]) for prompt in prompts)
    if last:
        yield GraphPath(f"{GENAI}, prompts that end with {' or '.join(map(str, last))}", tuple(parts))


def _pieces(decoder: GraphDecoder, ids: torch.Tensor, pieces: list[tuple[int, int]]) -> RowGroup:
    """Feeds the pieces one after another; a graph of last logits tells of where each piece ends."""
    past, found = decoder.empty(len(ids)), []
    positions: list[int] = []
    for start, end in pieces:
        logits, past = decoder.step(ids[:, start:end].numpy(), past)
        found.append(logits)
        positions += range(end - logits.shape[1], end)
    return RowGroup(ids, tuple(positions), torch.from_numpy(np.concatenate(found, 1)))


def _ragged(decoder: GraphDecoder, ids: torch.Tensor) -> tuple[RowGroup, RowGroup]:
    """Two prompts of unequal length side by side: where each ends, and some steps on."""
    short, full, extra = ids.shape[1] // 2, ids.shape[1] - 4, 4
    mask = np.ones((2, full), np.int64)
    mask[0, short:] = 0
    logits, past = decoder.step(ids[:, :full].numpy(), decoder.empty(2), mask)
    ends = [0, 0] if decoder.last_logits_only else [short - 1, full - 1]
    steps = [logits[[0, 1], ends][:, None]]
    tails = torch.stack([ids[0, short : short + extra], ids[1, full:]])
    for at in range(extra):
        logits, past = decoder.step(tails[:, at : at + 1].numpy(), past)
        steps.append(logits)
    found = torch.from_numpy(np.concatenate(steps, 1))
    first = RowGroup(ids[:1, : short + extra], tuple(range(short - 1, short + extra)), found[:1])
    return first, RowGroup(ids[1:], tuple(range(full - 1, full + extra)), found[1:])


def _greedy(decoder: GraphDecoder, prompt: torch.Tensor) -> RowGroup:
    """The graph's own greedy text. Judged as a whole: one pass over it does not lose its way after a close call."""
    tokens, logits = decoder.greedy_with_logits(prompt.numpy(), GREEDY_TOKENS)
    seen, start = torch.from_numpy(np.concatenate([prompt.numpy(), tokens], 1)), prompt.shape[1] - 1
    return RowGroup(seen[:, :-1], tuple(range(start, start + GREEDY_TOKENS)), torch.from_numpy(logits))
