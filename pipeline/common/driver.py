"""NVIDIA's driver, asked directly: GPU packages are installable without one, and some of them crash then."""

from __future__ import annotations

import ctypes
import os


def cuda_devices() -> list[str] | None:
    """Names of the GPUs that the driver sees; None without a driver."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_device_name(cuda, number) for number in range(count.value)]


def _device_name(cuda: ctypes.CDLL, number: int) -> str:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    if cuda.cuDeviceGet(ctypes.byref(handle), number) or cuda.cuDeviceGetName(name, len(name), handle):
        return f"GPU {number}"
    return name.value.decode(errors="replace")
