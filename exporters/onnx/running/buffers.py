"""The cache of a fused graph, written in place where the graph computes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporters.onnx.files import PAST, PRESENT
from exporters.onnx.running.device import Memory, fetch, run_bound

SPARE_TOKENS = 64
DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bfloat16)": ml_dtypes.bfloat16}

Shapes = dict[str, tuple[int, int]]


class Buffers:
    """The cache of a fused graph, which reads and writes it in place, as onnxruntime-genai has it do.

    A plain run would allocate and copy the whole cache for every token: 60 tensors for a model of 30 blocks.

    Args:
        session: of the graph.
        memory: that it computes in; cache, inputs and logits lie there.
        shapes: (KV heads, head_dim) of every cache input.
        dtype: of the cache.
        batch: rows.
        capacity: tokens that fit at first.

    Attributes:
        values: by cache input, the tensor that is read and written, in that memory.
    """

    def __init__(self, session: Any, memory: Memory, shapes: Shapes, dtype: Any, batch: int, capacity: int) -> None:
        self._session, self._memory, self._shapes, self._dtype, self._batch = session, memory, shapes, dtype, batch
        self.values: dict[str, Any] = {}
        self.capacity = -1
        self.reserve(capacity, 0)

    def reserve(self, needed: int, length: int) -> None:
        """Makes room for ``needed`` tokens; the first ``length`` of what is there are kept, by way of main memory."""
        if needed <= self.capacity:
            return
        self.capacity = max(needed + SPARE_TOKENS, 2 * self.capacity)
        self._binding = self._session.io_binding()
        for name, (heads, width) in self._shapes.items():
            array = np.zeros((self._batch, heads, self.capacity, width), self._dtype)
            old = self.values.pop(name, None)  # one tensor is there twice at a time, not the whole cache
            if length:
                array[:, :, :length] = fetch(old)[:, :, :length]
            value = self._memory.put(array)
            self.values[name] = value
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), value)

    def run(self, feeds: dict[str, NDArray[np.int64]]) -> Any:
        """One call of the graph; its logits as an OrtValue."""
        values = {name: self._memory.put(array) for name, array in feeds.items()}  # alive until the call ends
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_output("logits", self._memory.device)
        return run_bound(self._session, self._binding)[-1]  # bound last
