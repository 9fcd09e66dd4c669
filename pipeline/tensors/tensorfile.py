"""A safetensors file written one tensor at a time, byte for byte what the library writes of all of them at once.

The library's writer wants every tensor in memory. The format is eight bytes with the length of a JSON header, the header, and
the tensors' bytes, wider types first and then by name, as the library orders them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from pipeline.common.files import for_others
from pipeline.tensors.saved_states import bytes_of

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # in the library's order
ALIGNMENT = 8  # of the first tensor


class Tensors(Protocol):
    """Tensors by name, whose shapes and dtypes are known before they are made."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str, /) -> torch.Tensor: ...

    def form(self, name: str) -> torch.Tensor:
        """A tensor of that shape and dtype, maybe without values."""
        ...


def save_one_by_one(path: Path, tensors: Tensors) -> None:
    """Writes a file as ``pipeline.tensors.tensorfile.save_tensors`` does; each tensor is asked for once, and let go of when it is written.

    Raises:
        OSError: the disk is full.
    """
    forms = {name: tensors.form(name) for name in tensors}
    order = sorted(forms, key=lambda name: (list(DTYPES).index(forms[name].dtype), name))
    with path.open("wb") as file:
        file.write(_header(order, forms))
        for name in order:
            tensor = tensors[name].cpu().contiguous()
            assert (tensor.shape, tensor.dtype) == (forms[name].shape, forms[name].dtype), name
            file.write(bytes_of(tensor))
    for_others(path)


def _header(order: list[str], forms: dict[str, torch.Tensor]) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + forms[name].nbytes
        described[name] = {"dtype": DTYPES[forms[name].dtype], "shape": list(forms[name].shape), "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes one safetensors file that others may read; the writer itself says 0600."""
    save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, path, metadata={"format": "pt"})
    for_others(path)
