"""The cache of a fused graph, and numbers handed to ONNX Runtime without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrimlineError

PAST, PRESENT = "past_key_values.", "present."
SPARE_TOKENS = 64
DTYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bfloat16)": ml_dtypes.bfloat16}
BFLOAT16 = 16  # onnx.TensorProto's number for what numpy has no type of its own for

Shapes = dict[str, tuple[int, int]]


def as_value(array: NDArray[Any]) -> Any:
    """An OrtValue that shares the array's memory."""
    import onnxruntime

    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


@contextmanager
def as_trimline_error() -> Iterator[None]:
    """What ONNX Runtime raises while it runs becomes a sentence."""
    try:
        yield
    except Exception as error:  # its exceptions share no base class of their own
        raise TrimlineError(
            f"ONNX Runtime failed on the graph: {str(error).strip()}", "Check the input's shape; else export again."
        ) from error


class Buffers:
    """The cache of a fused graph, which reads and writes it in place, as onnxruntime-genai has it do.

    A plain run would allocate and copy the whole cache for every token: 60 tensors for a model of 30 blocks.

    Args:
        session: of the graph.
        shapes: (KV heads, head_dim) of every cache input.
        dtype: of the cache.
        batch: rows.
        capacity: tokens that fit at first.
    """

    def __init__(self, session: Any, shapes: Shapes, dtype: Any, batch: int, capacity: int) -> None:
        self._session, self._shapes, self._dtype, self._batch = session, shapes, dtype, batch
        self._arrays: dict[str, NDArray[Any]] = {}
        self.capacity = -1
        self.reserve(capacity, 0)

    def reserve(self, needed: int, length: int) -> None:
        """Makes room for ``needed`` tokens; the first ``length`` of what is there are kept."""
        if needed <= self.capacity:
            return
        self.capacity = max(needed + SPARE_TOKENS, 2 * self.capacity)
        old, self._arrays = self._arrays, {}
        self._binding = self._session.io_binding()
        for name, (heads, width) in self._shapes.items():
            array = np.zeros((self._batch, heads, self.capacity, width), self._dtype)
            if length:
                array[:, :, :length] = old[name][:, :, :length]
            value = as_value(array)
            self._arrays[name] = array
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.replace(PAST, PRESENT), value)

    def run(self, feeds: dict[str, NDArray[np.int64]]) -> Any:
        """One call of the graph; its logits as an OrtValue."""
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, as_value(array))
        self._binding.bind_output("logits", "cpu")
        with as_trimline_error():
            self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()[-1]  # bound last
