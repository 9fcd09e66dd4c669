"""Running an OpenVINO folder in openvino: prompt, steps with the state, greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.openvino.files import MODEL
from exporters.openvino.lowering import INPUTS, LOGITS
from exporters.openvino.runtime import needs_openvino, refused
from exporters.openvino.stateful import BEAMS
from pipeline.common.errors import TrimlineError

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
DEVICE = "CPU"
# What a plugin is asked where every number has to be the checkpoint's. By itself a processor keeps keys and values in 8 bits, rounds
# activations of products in 4 and 8 bits to int8, and computes in bf16 where it has it.
EXACT: dict[str, Any] = {"EXECUTION_MODE_HINT": "ACCURACY", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
# What the device has chosen is read back under these names.
ARITHMETIC = {
    "activations": "INFERENCE_PRECISION_HINT",
    "cache": "KV_CACHE_PRECISION",
    "rounded together": "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "mode": "EXECUTION_MODE_HINT",
}


@dataclass(frozen=True)
class StateSeen:
    """What the model has seen: mask (batch, tokens), 1 for a token and 0 for padding; ``call`` counts the decoder's calls, which hold the state."""

    mask: Ids
    call: int = 0


class OpenvinoDecoder:
    """A folder in openvino.

    Args:
        folder: holds openvino_model.xml.
        threads: of the processor; by default all that this process may use.
        every_position: logits of all positions; else of each row's last, which spares a prompt most of the output head.
        exact: ``EXACT`` instead of what the device chooses for speed.

    Raises:
        TrimlineError: openvino is missing, or cannot open the folder.
    """

    lowering = "openvino"

    def __init__(self, folder: Path, threads: int | None = None, every_position: bool = False, exact: bool = False) -> None:
        needs_openvino()
        import openvino as ov

        self.folder = Path(folder)
        settings = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            core = ov.Core()
            model = core.read_model(str(self.folder / MODEL))
            if not every_position:
                keep_last_position(model)
            self._compiled = core.compile_model(model, DEVICE, settings | (EXACT if exact else {"PERFORMANCE_HINT": "LATENCY"}))
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # they have no other base
            raise refused("OpenVINO", self.folder, error) from error
        self._call = 0
        self.last_logits_only = not every_position
        self.vocab: int = self._compiled.output(LOGITS).get_partial_shape()[2].get_length()

    @property
    def arithmetic(self) -> dict[str, str]:
        """What the device has chosen: number formats of activations and cache, numbers that are rounded to int8 together, and the mode."""
        found = {}
        for name, key in ARITHMETIC.items():
            value = self._compiled.get_property(key)
            found[name] = value.get_type_name() if hasattr(value, "get_type_name") else str(value).rpartition(".")[2]
        return found

    def empty(self, batch: int = 1, capacity: int = 0) -> StateSeen:
        """Nothing seen; a state grows by itself, whatever ``capacity`` says."""
        return StateSeen(np.zeros((batch, 0), np.int64))

    def run(self, ids: Ids, past: StateSeen, mask: Ids | None = None, order: Sequence[int] | None = None) -> tuple[Any, StateSeen]:
        """One call, nothing copied out: what a benchmark times.

        Args:
            ids: token ids, (batch, sequence).
            past: that the decoder returned last, or an empty one.
            mask: (batch, sequence), 0 where ``ids`` is padding; all ones by default. A number above 1 is as many positions at once.
            order: which row of the past each row goes on from; by default its own.

        Returns:
            Logits as an ``openvino.Tensor`` (batch, sequence or 1, vocabulary), valid until the next call, and the present.

        Raises:
            TrimlineError: the past is not that of the last call; there is one state, and it has moved on.
        """
        rows = np.arange(len(ids), dtype=np.int32) if order is None else np.asarray(order, np.int32)
        before = past.mask[rows]
        if not past.call:
            self._request.reset_state()
        elif past.call != self._call:
            raise TrimlineError("An OpenVINO state goes on from its last call only.", "Start from an empty past.")
        seen = np.concatenate([before, np.ones_like(ids) if mask is None else mask], axis=1)
        positions = np.maximum(seen.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feeds = dict(zip(INPUTS, (np.ascontiguousarray(ids, np.int64), seen, positions), strict=True))
        self._request.infer(feeds | {BEAMS: rows}, share_inputs=True)
        self._call += 1
        return self._request.get_tensor(LOGITS), StateSeen(seen, self._call)

    def step(self, ids: Ids, past: StateSeen, mask: Ids | None = None, order: Sequence[int] | None = None) -> tuple[Logits, StateSeen]:
        """As ``run``, with the logits as an array of the caller's own."""
        logits, present = self.run(ids, past, mask, order)
        return np.array(logits.data, np.float32), present

    def logits(self, ids: Ids) -> Logits:
        """Logits of shape (batch, sequence or 1, vocabulary), computed without a past."""
        return self.step(ids, self.empty(len(ids)))[0]

    def greedy_with_logits(self, prompts: Ids, tokens: int) -> tuple[Ids, Logits]:
        """The most likely next tokens after prompts of one length; an end-of-text token does not stop it.

        Returns:
            Token ids, (prompts, tokens), and the logits that each was chosen by, (prompts, tokens, vocabulary).
        """
        logits, past = self.step(np.asarray(prompts, np.int64), self.empty(len(prompts)))
        said = [logits[:, -1]]
        while len(said) < tokens:
            logits, past = self.step(said[-1].argmax(-1)[:, None].astype(np.int64), past)
            said.append(logits[:, -1])
        return np.stack([one.argmax(-1) for one in said], axis=1), np.stack(said, axis=1)


def attends_by_operator(folder: Path) -> bool:
    """Whether the graph of a folder attends by OpenVINO's own operator, which plugins fuse with the state and openvino-genai pages."""
    import openvino as ov

    nodes = ov.Core().read_model(str(folder / MODEL)).get_ops()
    return any(node.get_type_name() == "ScaledDotProductAttention" for node in nodes)


def keep_last_position(model: Any) -> None:
    """Of a graph that is to be compiled: the output head reads each row's last position alone, as openvino-genai has it do.

    Raises:
        TrimlineError: no product makes the logits.
    """
    from openvino import opset13 as op

    node = model.output(LOGITS).get_node()
    while node.get_type_name() != "MatMul":
        if not node.get_input_size():
            raise TrimlineError("No product makes the logits of this graph.", "Export it again.")
        node = node.input_value(0).get_node()
    numbers = [op.constant(np.array([number], np.int64)) for number in (-1, np.iinfo(np.int64).max, 1, 1)]
    last = op.slice(node.input_value(0), *numbers)
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
