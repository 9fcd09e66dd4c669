"""Running an exported graph in ONNX Runtime: prefill, steps with the cache, greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx.files import GRAPH, LOWERING_KEY, PAST, PRESENT
from exporters.onnx.running.buffers import DTYPES, Buffers
from exporters.onnx.running.device import Memory, Provider, fetch, fetch_positions, run_bound
from exporters.onnx.running.providers import SERVED, Sizes, open_session
from exporters.onnx.runtime import needs_runtime
from pipeline.common.errors import TrimlineError

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Past:
    """What the model has seen.

    Attributes:
        mask: 1 for a token, 0 for padding, shape (batch, tokens seen).
        values: per cache input the tensor that the next run reads, where the graph computes.
        buffers: where fused graphs keep the cache (batch, KV heads, capacity, head_dim), shared by all pasts of one
            sequence: continuing from an older past overwrites what newer ones had.
    """

    mask: Ids
    values: dict[str, Any] = field(default_factory=dict)
    buffers: Buffers | None = None

    @property
    def length(self) -> int:
        return self.mask.shape[1]


class OnnxDecoder:
    """A decoder graph of either lowering.

    Args:
        folder: holds model.onnx.
        threads: of ONNX Runtime inside an operator; by default all that this process may use.
        provider: ``cpu``, ``cuda`` or ``tensorrt``, as in ``exporters.onnx.running.device``; the cache lies there too. Asking for one is demanding it.
        every_position: logits of all positions from a graph that gives those of the last, over the same weights.
        mapped: weights stay in their file. ONNX Runtime would else pack a copy of them for speed.
        served: prompt, output and batch of requests to come; the TensorRT provider builds its engine for these.

    Raises:
        TrimlineError: no graph in the folder, ONNX Runtime missing or installed twice, or a provider that this machine cannot
            give, or that has no kernel for a part of the graph (ONNX Runtime itself would quietly compute on the processor).
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        provider: Provider = "cpu",
        every_position: bool = False,
        mapped: bool = False,
        served: Sequence[Sizes] = SERVED,
    ) -> None:
        needs_runtime()
        self.folder, self.memory = Path(folder), Memory(provider)
        self.session = open_session(
            self.folder / GRAPH, provider, threads or 0, every_position=every_position, mapped=mapped, served=served
        )
        inputs = self.session.get_inputs()
        self._cache_shapes = {i.name: (i.shape[1], i.shape[3]) for i in inputs if i.name.startswith(PAST)}
        self._cache_dtype = next(DTYPES[i.type] for i in inputs if i.name.startswith(PAST))
        self._wants_positions = any(i.name == "position_ids" for i in inputs)
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.lowering = self.session.get_modelmeta().custom_metadata_map.get(LOWERING_KEY, "portable")
        logits = self.session.get_outputs()[0]
        self.last_logits_only = logits.shape[1] == 1
        self.vocab: int = logits.shape[2]

    @property
    def cache_bytes(self) -> int:
        """Of the cache, per token of one row."""
        return sum(heads * width for heads, width in self._cache_shapes.values()) * int(np.dtype(self._cache_dtype).itemsize)

    def empty(self, batch: int = 1, capacity: int = 0) -> Past:
        """A past without tokens; ``capacity`` tokens fit before a fused graph's buffers have to grow."""
        mask = np.zeros((batch, 0), np.int64)
        if self.lowering == "fused":
            return Past(mask, buffers=Buffers(self.session, self.memory, self._cache_shapes, self._cache_dtype, batch, capacity))
        empty = {name: np.zeros((batch, heads, 0, width), self._cache_dtype) for name, (heads, width) in self._cache_shapes.items()}
        return Past(mask, values={name: self.memory.put(array) for name, array in empty.items()})

    def run(self, ids: Ids, past: Past, mask: Ids | None = None) -> tuple[Any, Past]:
        """One call of the graph, nothing copied out: what a benchmark times.

        Args:
            ids: token ids, (batch, sequence).
            past: of the same batch.
            mask: (batch, sequence), 0 where ``ids`` is padding on the right; all ones by default.

        Returns:
            Logits as an ``OrtValue`` of shape (batch, sequence or 1, vocabulary) in the provider's memory, and the present.

        Raises:
            TrimlineError: several tokens for several rows after a past, which fused graphs cannot take.
        """
        seen = np.concatenate([past.mask, np.ones_like(ids) if mask is None else mask], axis=1)
        feeds = {"input_ids": ids, "attention_mask": seen}
        if self._wants_positions:
            feeds["position_ids"] = np.maximum(seen.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        if past.buffers is not None:
            if past.length and len(ids) > 1 and ids.shape[1] > 1:
                raise TrimlineError("A fused graph continues several rows by one token at a time.", "Feed one row, or one token.")
            past.buffers.reserve(seen.shape[1], past.length)
            return past.buffers.run(feeds), Past(seen, buffers=past.buffers)
        binding = self.session.io_binding()
        values = {name: self.memory.put(array) for name, array in feeds.items()} | past.values
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, self.memory.device)
        logits, *present = run_bound(self.session, binding)
        names = (name.replace(PRESENT, PAST) for name in self._outputs[1:])
        return logits, Past(seen, values=dict(zip(names, present, strict=True)))

    def step(self, ids: Ids, past: Past, mask: Ids | None = None) -> tuple[Logits, Past]:
        """As ``run``, with the logits as an array of the caller's own."""
        logits, present = self.run(np.ascontiguousarray(ids, np.int64), past, mask)
        return fetch(logits), present

    def logits(self, ids: Ids) -> Logits:
        """Logits of shape (batch, sequence or 1, vocabulary), computed without a past."""
        return self.step(ids, self.empty(len(ids), ids.shape[1]))[0]

    def greedy(self, prompts: Ids | Sequence[Sequence[int]], tokens: int) -> Ids:
        """The ``tokens`` most likely next tokens per prompt, (prompts, tokens); as ``greedy_with_logits``."""
        return self.greedy_with_logits(prompts, tokens)[0]

    def greedy_with_logits(self, prompts: Ids | Sequence[Sequence[int]], tokens: int) -> tuple[Ids, Logits]:
        """The most likely next tokens with the cache; an end-of-text token does not stop it.

        Prompts of unequal length are padded on the right.

        Returns:
            Token ids, (prompts, tokens), and the logits that each was chosen by, (prompts, tokens, vocabulary).
        """
        said = list(islice(self._greedy(prompts, tokens), tokens))
        return np.stack([logits.argmax(-1) for logits in said], axis=1), np.stack(said, axis=1)

    def greedy_steps(self, prompts: Ids | Sequence[Sequence[int]], tokens: int) -> Iterator[Ids]:
        """As ``greedy``, one step at a time, at most ``tokens`` of them: (prompts,) each; whoever has enough stops asking."""
        return (logits.argmax(-1) for logits in islice(self._greedy(prompts, tokens), tokens))

    def _greedy(self, prompts: Ids | Sequence[Sequence[int]], tokens: int) -> Iterator[Logits]:
        """The logits, (prompts, vocabulary), that each next token is chosen by; no others leave the device."""
        ids, mask = _pad(prompts)
        lengths = mask.sum(axis=1)
        logits, past = self.run(ids, self.empty(len(ids), ids.shape[1] + tokens), mask)
        ends = np.zeros_like(lengths) if self.last_logits_only else lengths - 1
        while True:
            said = fetch_positions(logits, ends)
            yield said
            logits, past = self.run(said.argmax(-1)[:, None], past)
            ends = np.zeros_like(lengths)


def _pad(prompts: Ids | Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """(ids, mask), both (prompts, longest), padded with zeros on the right."""
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask
