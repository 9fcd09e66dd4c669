"""Where a session computes and where its tensors lie: one name, a provider's, decides both for every user of ONNX Runtime.

On a processor a tensor shares the memory of the array that it comes from. On a GPU token ids go there, the cache stays
there, and logits come back only where somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporters.onnx.runtime import CPU, CUDA, TENSORRT
from pipeline.common.errors import TrimlineError

Provider = Literal["cpu", "cuda", "tensorrt"]
CHAINS: dict[Provider, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}
BFLOAT16 = 16  # onnx.TensorProto's number for what numpy has no type of its own for


class Memory:
    """The memory that a provider computes in.

    Attributes:
        device: as ONNX Runtime calls it: ``cpu`` or ``cuda``, the first that is visible.
    """

    def __init__(self, provider: Provider) -> None:
        self.device = "cpu" if provider == "cpu" else "cuda"

    def put(self, array: NDArray[Any]) -> Any:
        """An OrtValue there: of the array's own memory on a processor, else a copy."""
        import onnxruntime

        if self.device == "cpu":
            return _shared(array)
        if array.dtype != ml_dtypes.bfloat16:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, BFLOAT16, self.device, 0)
        if array.size:
            value.update_inplace(_shared(array))
        return value


def fetch(value: Any) -> NDArray[Any]:
    """An OrtValue as an array in main memory: a view where it lies there, else a copy."""
    if value.element_type() != BFLOAT16:
        found: NDArray[Any] = value.numpy()
        return found
    array = np.empty(value.shape(), ml_dtypes.bfloat16)
    if array.size:
        _shared(array).update_inplace(value)
    return array


def fetch_positions(logits: Any, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """Of logits (rows, positions, vocabulary) wherever they lie, one position of every row: (rows, vocabulary); no other is copied."""
    import torch  # which a process that is measured does without

    found = torch.from_dlpack(logits)
    chosen: NDArray[np.float32] = found[torch.arange(len(positions)), torch.as_tensor(positions)].float().cpu().numpy()
    return chosen


def run_bound(session: Any, binding: Any) -> list[Any]:
    """One call of a graph whose inputs and outputs are bound, to its end; outputs in the order that they were bound in.

    Raises:
        TrimlineError: ONNX Runtime fails.
    """
    with as_trimline_error():
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    outputs: list[Any] = binding.get_outputs()
    return outputs


@contextmanager
def as_trimline_error() -> Iterator[None]:
    """What ONNX Runtime raises while it runs becomes a sentence."""
    try:
        yield
    except Exception as error:  # its exceptions share no base class of their own
        raise TrimlineError(
            f"ONNX Runtime failed on the graph: {str(error).strip()}", "Check the input's shape; else export again."
        ) from error


def _shared(array: NDArray[Any]) -> Any:
    import onnxruntime

    if array.dtype == ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
