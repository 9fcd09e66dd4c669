"""Weights of ONNX Runtime's MatMulNBits: several to a byte, in blocks along the axis that is summed over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unpacked_zeros(
    packed: NDArray[np.uint8], scales: NDArray[Any], points: NDArray[Any] | None, *, K: int, N: int, bits: int, block_size: int
) -> NDArray[np.bool_]:
    """Where the weight (N outputs, K inputs) that stands for its packed form is zero.

    A weight is (value − zero point) · scale, with one scale and one zero point per row and block.

    Args:
        packed: (N, blocks, bytes per block), the lowest bits first.
        scales: N · blocks values.
        points: packed like the values (one row of blocks per output), or floats, or None for half of the range.
    """
    blocks = -(-K // block_size)
    values = _unpack(packed.reshape(N, -1), bits)[:, : blocks * block_size].reshape(N, blocks, block_size)
    if points is None:
        zero: Any = 2 ** (bits - 1)
    elif points.dtype == np.uint8:
        zero = _unpack(points.reshape(N, -1), bits)[:, :blocks, None]
    else:
        zero = points.astype(np.float32).reshape(N, blocks, 1)
    mask = (values == zero) | (scales.astype(np.float32).reshape(N, blocks, 1) == 0)
    return mask.reshape(N, -1)[:, :K]


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """(rows, bytes) to (rows, values), the lowest bits of a byte first."""
    places = np.arange(0, 8, bits, dtype=np.uint8)
    values = (packed[..., None] >> places) & np.uint8(2**bits - 1)
    return values.reshape(len(packed), -1)
