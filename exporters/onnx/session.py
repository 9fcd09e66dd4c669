"""Running an exported graph in ONNX Runtime: prefill, steps with the cache, greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.onnx.buffers import DTYPES, PAST, PRESENT, Buffers, as_trimline_error, as_value
from exporters.onnx.files import GRAPH, LOWERING_KEY
from exporters.onnx.placement import RECORD, check_places, places
from exporters.onnx.runtime import CPU, CUDA, load_libraries, needs_runtime, provider_refusal
from pipeline.errors import TrimlineError

WEIGHTS_BESIDE = "session.model_external_initializers_file_folder_path"  # where a graph that comes from memory has its weights
UNPACKED, FOLDING = "session.disable_prepacking", "ConstantFolding"  # each would hold a copy of what lies in the file
FEW_REWRITES = "ORT_ENABLE_EXTENDED"  # so do the optimizations beyond it, of fp16 weights, in fp32: a processor has few kernels for those

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Past:
    """What the model has seen.

    Attributes:
        mask: 1 for a token, 0 for padding, shape (batch, tokens seen).
        values: per cache input the tensor that the next run reads.
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
        providers: execution providers, best first. Asking for one is demanding it.
        every_position: logits of all positions from a graph that gives those of the last, over the same weights.
        mapped: weights stay in their file. ONNX Runtime would else pack a copy of them for speed.

    Raises:
        TrimlineError: no graph in the folder, ONNX Runtime missing or installed twice, or a provider that this machine cannot
            give, or that has no kernel for a part of the graph (ONNX Runtime itself would quietly compute on the processor).
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        every_position: bool = False,
        mapped: bool = False,
    ) -> None:
        needs_runtime()
        self.folder = Path(folder)
        self.session = _open(self.folder / GRAPH, threads or 0, tuple(providers), every_position, mapped)
        inputs = self.session.get_inputs()
        self._cache_shapes = {i.name: (i.shape[1], i.shape[3]) for i in inputs if i.name.startswith(PAST)}
        self._cache_dtype = next(DTYPES[i.type] for i in inputs if i.name.startswith(PAST))
        self._wants_positions = any(i.name == "position_ids" for i in inputs)
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.lowering = self.session.get_modelmeta().custom_metadata_map.get(LOWERING_KEY, "portable")
        logits = self.session.get_outputs()[0]
        self.last_logits_only = logits.shape[1] == 1
        self.vocab: int = logits.shape[2]

    def empty(self, batch: int = 1, capacity: int = 0) -> Past:
        """A past without tokens; ``capacity`` tokens fit before a fused graph's buffers have to grow."""
        mask = np.zeros((batch, 0), np.int64)
        if self.lowering == "fused":
            return Past(mask, buffers=Buffers(self.session, self._cache_shapes, self._cache_dtype, batch, capacity))
        empty = {name: np.zeros((batch, heads, 0, width), self._cache_dtype) for name, (heads, width) in self._cache_shapes.items()}
        return Past(mask, values={name: as_value(array) for name, array in empty.items()})

    def run(self, ids: Ids, past: Past, mask: Ids | None = None) -> tuple[Any, Past]:
        """One call of the graph, nothing copied out: what a benchmark times.

        Args:
            ids: token ids, (batch, sequence).
            past: of the same batch.
            mask: (batch, sequence), 0 where ``ids`` is padding on the right; all ones by default.

        Returns:
            Logits as an ``OrtValue`` of shape (batch, sequence or 1, vocabulary), and the present.

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
        values = {name: as_value(array) for name, array in feeds.items()} | past.values
        with as_trimline_error():
            logits, *present = self.session.run_with_ort_values(self._outputs, values)
        names = (name.replace(PRESENT, PAST) for name in self._outputs[1:])
        return logits, Past(seen, values=dict(zip(names, present, strict=True)))

    def step(self, ids: Ids, past: Past, mask: Ids | None = None) -> tuple[Logits, Past]:
        """As ``run``, with the logits as an array of the caller's own."""
        logits, present = self.run(np.ascontiguousarray(ids, np.int64), past, mask)
        return logits.numpy(), present

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
        """The logits, (prompts, vocabulary), that each next token is chosen by."""
        ids, mask = _pad(prompts)
        lengths = mask.sum(axis=1)
        logits, past = self.step(ids, self.empty(len(ids), ids.shape[1] + tokens), mask)
        ends = np.zeros_like(lengths) if self.last_logits_only else lengths - 1
        said = logits[np.arange(len(ids)), ends]
        while True:
            yield said
            logits, past = self.step(said.argmax(-1)[:, None], past)
            said = logits[:, -1]

    def greedy_without_cache(self, ids: Ids, tokens: int) -> Ids:
        """As ``greedy``, reading the whole text anew for each token: slow, and a check on the cache."""
        text = np.asarray(ids, np.int64)
        for _ in range(tokens):
            text = np.concatenate([text, self.logits(text)[:, -1:].argmax(-1)], axis=1)
        return text[:, -tokens:]


def providers_for(device: str) -> tuple[str, ...]:
    """Of a run option: the GPU's own where it is ``cuda``, which still leaves bookkeeping on shapes to the processor, and nothing else."""
    return (CPU,) if device == "cpu" else (CUDA, CPU)


def _open(graph: Path, threads: int, providers: tuple[str, ...], every_position: bool, mapped: bool) -> Any:
    import onnxruntime

    if not graph.is_file():
        raise TrimlineError(f"There is no {graph.name} in {graph.parent}.", "Give the folder that the export stage wrote.")
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise provider_refusal(missing[0], "this build of ONNX Runtime does not have it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if mapped:
        options.add_session_config_entry(UNPACKED, "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.__members__[FEW_REWRITES]
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # a weight is cast when its turn comes, not all at first
        options.enable_cpu_mem_arena = False  # it would keep what a run took for the next one
    gpus = [name for name in providers if name != CPU]
    load_libraries(gpus)
    if gpus:
        options.add_session_config_entry(RECORD, "1")
    if CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        without_choice = _every_position(graph) if every_position else None
        options.add_session_config_entry(WEIGHTS_BESIDE, str(graph.parent.resolve()))
        kept_out = {"disabled_optimizers": [FOLDING]} if mapped else {}
        session = onnxruntime.InferenceSession(without_choice or str(graph), options, providers=list(providers), **kept_out)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise TrimlineError(
            f"ONNX Runtime cannot open {graph}: {str(error).strip()}", "Export it again, or ask for fewer providers."
        ) from error
    lost = [name for name in providers if name not in session.get_providers()]
    if lost:
        raise provider_refusal(lost[0], "it did not start (a library or a device is missing)")
    if gpus:
        check_places(places(session), gpus)
    return session


def _every_position(graph: Path) -> bytes | None:
    from exporters.onnx.last_position import all_positions  # brings onnx, which a process that is measured does without

    return all_positions(graph)


def _pad(prompts: Ids | Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """(ids, mask), both (prompts, longest), padded with zeros on the right."""
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask
