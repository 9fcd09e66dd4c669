"""The packaged graph in ONNX Runtime: each prompt read by itself, then several texts continued together.

Rows of a batch may have different lengths. A fused graph keeps its cache in buffers that it writes in place, a portable
one gives back a longer cache each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

GRAPH, CONFIG, LOWERING = "model.onnx", "genai_config.json", "trimline.lowering"
PAST, PRESENT = "past_key_values.", "present."
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
RECORD = "session.record_ep_graph_assignment_info"
# What computes shapes, positions and masks from sizes, a few numbers each: the CUDA provider leaves these to the processor by itself.
SHAPE_OPERATORS = {
    *("Shape", "Size", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Reshape", "ConstantOfShape", "Range"),
    *("Add", "Sub", "Mul", "Div", "Neg", "Min", "Max", "Where", "Expand", "Identity", "Constant", "ReduceProd", "ReduceSum"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
}

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Growing(Protocol):
    """A text that is being continued (``replies.Reply``)."""

    wish: Any
    tokens: list[int]
    finish: str | None

    def accept(self, logits: Logits) -> None: ...


def generate(decoder: Decoder, replies: Sequence[Growing]) -> Iterator[None]:
    """Lets all replies grow together; yields after every round. A reply whose ``finish`` is set from outside stops."""
    if not replies:
        return
    batch = _read_all(decoder, replies)
    growing = list(replies)
    while True:
        yield
        rows = [row for row, reply in enumerate(growing) if reply.finish is None]
        if not rows:
            return
        growing, batch = [growing[row] for row in rows], batch.kept(rows)
        logits = batch.step(np.asarray([[reply.tokens[-1]] for reply in growing], np.int64))
        for row, reply in enumerate(growing):
            reply.accept(logits[row])


def _read_all(decoder: Decoder, replies: Sequence[Growing]) -> Batch:
    batches = []
    for reply in replies:
        logits, batch = decoder.read(reply.wish.ids, len(reply.wish.ids) + reply.wish.max_tokens)
        reply.accept(logits[0])
        batches.append(batch)
    return Batch.joined(batches)


class Decoder:
    """A folder that ``trimline export`` wrote, opened.

    Args:
        folder: holds model.onnx and genai_config.json.
        threads: of ONNX Runtime inside an operator; 0: one per core.
        device: ``cpu`` or ``cuda``.
        device_id: which GPU.

    Raises:
        RuntimeError: the folder is not there, the device cannot be had or has no kernel for a part of the graph, or the graph
            is of an unknown kind.
    """

    def __init__(self, folder: Path, threads: int = 0, device: str = "cpu", device_id: int = 0) -> None:
        if not (folder / GRAPH).is_file():
            raise RuntimeError(f"{folder} holds no {GRAPH}: the model repository has to stay inside its package.")
        self.device, self.device_id = device, device_id
        self.session = _open(folder / GRAPH, threads, device, device_id)
        self.inputs = {entry.name: entry for entry in self.session.get_inputs()}
        self.caches = {name: entry for name, entry in self.inputs.items() if name.startswith(PAST)}
        unknown = set(self.inputs) - set(self.caches) - {"input_ids", "attention_mask", "position_ids"}
        types = {entry.type for entry in self.caches.values()} - set(TYPES)
        if unknown or types:
            raise RuntimeError(f"{folder / GRAPH} has inputs that this backend does not know: {', '.join(sorted(unknown | types))}.")
        self.outputs = [entry.name for entry in self.session.get_outputs()]
        self.in_place = self.session.get_modelmeta().custom_metadata_map.get(LOWERING) == "fused"
        model = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
        self.context: int = model["context_length"]
        end = model.get("eos_token_id", [])
        self.ends = frozenset(end if isinstance(end, list) else [end])

    def read(self, ids: Sequence[int], capacity: int) -> tuple[Logits, Batch]:
        """Reads one prompt.

        Args:
            ids: at least one token.
            capacity: tokens that the text may grow to.

        Returns:
            Logits after its last token, (1, vocabulary), and a batch of this row.
        """
        batch = Batch(self, [0], {name: self._empty(name, capacity) for name in self.caches})
        return batch.step(np.asarray([ids], np.int64)), batch

    def value(self, array: NDArray[Any]) -> Any:
        """An array on the device."""
        return ort.OrtValue.ortvalue_from_numpy(array, self.device, self.device_id)

    def _empty(self, name: str, capacity: int) -> Any:
        entry = self.caches[name]
        shape = (1, entry.shape[1], capacity if self.in_place else 0, entry.shape[3])
        return self.value(np.zeros(shape, TYPES[entry.type]))


class Batch:
    """Texts that are continued together, one row each.

    Attributes:
        lengths: tokens of each row that are in the cache.
    """

    def __init__(self, decoder: Decoder, lengths: list[int], cache: dict[str, Any], mask: Ids | None = None) -> None:
        self._decoder, self.lengths, self._cache = decoder, lengths, cache
        self._mask = np.zeros((len(lengths), 0), np.int64) if mask is None else mask
        self._binding = decoder.session.io_binding()
        if decoder.in_place:
            self._bind_cache()

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """Rows of several batches as one; where they have different room, the largest."""
        if len(batches) == 1:
            return batches[0]
        decoder = batches[0]._decoder
        width = max(batch._mask.shape[1] for batch in batches)
        masks = [np.pad(batch._mask, ((0, 0), (0, width - batch._mask.shape[1]))) for batch in batches]
        cache = {name: decoder.value(_stacked([batch._cache[name].numpy() for batch in batches])) for name in decoder.caches}
        return cls(decoder, [length for batch in batches for length in batch.lengths], cache, np.concatenate(masks))

    def kept(self, rows: Sequence[int]) -> Batch:
        """A batch of some of the rows."""
        if list(rows) == list(range(len(self.lengths))):
            return self
        places = list(rows)
        decoder = self._decoder
        cache = {name: decoder.value(np.ascontiguousarray(value.numpy()[places])) for name, value in self._cache.items()}
        return Batch(decoder, [self.lengths[row] for row in places], cache, self._mask[places])

    def step(self, ids: Ids) -> Logits:
        """Appends tokens, (rows, new); more than one new token only to an empty row that is alone.

        Returns:
            Logits after the last of them, (rows, vocabulary).
        """
        new = ids.shape[1]
        positions = np.asarray(self.lengths, np.int64)[:, None] + np.arange(new)
        self.lengths = [length + new for length in self.lengths]
        logits = self._run(ids, self._grown_mask(new), positions)
        return logits[:, -1].astype(np.float32, copy=False)

    def _grown_mask(self, new: int) -> Ids:
        if self._decoder.in_place:  # rows are compact: what counts is how many tokens each has
            self._mask = (np.arange(max(self.lengths)) < np.asarray(self.lengths)[:, None]).astype(np.int64)
        else:  # new tokens come behind the longest row; what lies between stays masked
            self._mask = np.pad(self._mask, ((0, 0), (0, new)), constant_values=1)
        return self._mask

    def _run(self, ids: Ids, mask: Ids, positions: Ids) -> NDArray[Any]:
        decoder, binding = self._decoder, self._binding
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        held = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feeds[name])) for name in feeds if name in decoder.inputs}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        if decoder.in_place:
            binding.bind_output("logits", "cpu")
            decoder.session.run_with_iobinding(binding)
            return binding.get_outputs()[-1].numpy()  # bound last
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in decoder.outputs:
            binding.bind_output(name, *(("cpu", 0) if name == "logits" else (decoder.device, decoder.device_id)))
        decoder.session.run_with_iobinding(binding)
        found = dict(zip(decoder.outputs, binding.get_outputs(), strict=True))
        self._cache = {name: found[name.replace(PAST, PRESENT)] for name in self._cache}
        self._binding = decoder.session.io_binding()
        return found["logits"].numpy()

    def _bind_cache(self) -> None:
        for name, value in self._cache.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), value)


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays (rows, heads, length, width) below each other, the shorter ones with zeros behind."""
    longest = max(array.shape[2] for array in arrays)
    return np.concatenate([np.pad(array, ((0, 0), (0, 0), (0, longest - array.shape[2]), (0, 0))) for array in arrays])


def _open(graph: Path, threads: int, device: str, device_id: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    provider = PROVIDERS[device]
    if device == "cuda":
        options.add_session_config_entry(RECORD, "1")
        getattr(ort, "preload_dlls", lambda: None)()  # pip puts CUDA's libraries where no loader looks for them
    session = ort.InferenceSession(str(graph), options, providers=[(provider, {"device_id": device_id} if device == "cuda" else {})])
    if provider not in session.get_providers():  # ONNX Runtime itself goes on with the processor, and says nothing
        raise RuntimeError(f"ONNX Runtime could not start {provider}: a library or a device is missing.")
    if device == "cuda":
        _demand_placed(session, provider)
    return session


def _demand_placed(session: Any, provider: str) -> None:
    """Whether everything but computations on shapes runs there: ONNX Runtime gives the processor what has no kernel, and says nothing."""
    placed = getattr(session, "get_provider_graph_assignment_info", None)
    if placed is None:  # an ONNX Runtime that cannot tell
        return
    elsewhere = {node.op_type for part in placed() if part.ep_name != provider for node in part.get_nodes()}
    if stray := sorted(elsewhere - SHAPE_OPERATORS):
        raise RuntimeError(
            f"{provider} leaves {', '.join(stray)} to the processor: serve it there (KIND_CPU), or export another precision."
        )
