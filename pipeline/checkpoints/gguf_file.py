"""What a GGUF file says of itself: keys, and names, shapes and types of its tensors. Only its header is read, however large it is.

The form is that of ggml's specification (docs/gguf.md in its repository), versions 2 and 3, little endian. ``gguf.GGUFReader`` makes an array
of every token of a vocabulary, which takes seconds.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pipeline.common.errors import TrimlineError, shown

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # struct's letters
TEXT, LIST = 8, 9
MOST_LISTED = 4096  # sizes per block are kept; longer lists are vocabularies, of which the length is
MOST_AXES = 8


@dataclass(frozen=True)
class GgufTensors:
    """The tensors of one type.

    Attributes:
        type: ggml's name, such as ``Q4_K``.
        tensors: how many.
        numbers: in all of them.
        bytes: that they take.
    """

    type: str
    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True)
class GgufFile:
    """A header.

    Attributes:
        version: of the format.
        architecture: as llama.cpp calls it.
        sizes: keys of the architecture, without its name; a vocabulary's length stands for it.
        types: one entry per type of tensor, the largest first.
        tokenizer: model, pre-tokenizer, number of tokens, whether there is a chat template.
        bytes: of the file.
    """

    version: int
    architecture: str
    sizes: dict[str, Any]
    types: tuple[GgufTensors, ...]
    tokenizer: dict[str, Any]
    bytes: int

    def per_block(self, key: str) -> list[int]:
        """A size of every block, which a file gives once where all are alike; empty where it says nothing."""
        value, blocks = self.sizes.get(key), self.sizes.get("block_count")
        if isinstance(value, list) and all(isinstance(one, int) for one in value):
            return value
        return [value] * min(blocks, MOST_LISTED) if isinstance(value, int) and isinstance(blocks, int) else []


def read_gguf(path: Path) -> GgufFile:
    """Reads a header.

    Raises:
        TrimlineError: as ``read_contents``.
    """
    return read_contents(path)[0]


def read_contents(path: Path) -> tuple[GgufFile, tuple[str, ...]]:
    """A header, and the names of the tensors in their order.

    Raises:
        TrimlineError: it is no GGUF file, of another version, or ends in the middle of its header or its tensors.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read(_Bytes(content), len(content))
    except (struct.error, ValueError, UnicodeDecodeError, KeyError) as error:
        raise TrimlineError(f"{path} is no whole GGUF file ({_words(error)}).", "Fetch it again.") from None


def _words(error: Exception) -> str:
    if isinstance(error, struct.error):
        return "it ends too early"
    return f"a value of type {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:120]


class _Bytes:
    """A file read from front to back."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self.at = content, 0

    def number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._content, self.at)
        self.at += struct.calcsize(letter)
        return value

    def raw(self, length: int) -> bytes:
        if length > len(self._content) - self.at:
            raise ValueError("it ends too early")
        self.at += length
        return self._content[self.at - length : self.at]

    def text(self) -> str:
        return self.raw(self.number("Q")).decode("utf-8", "replace")

    def value(self) -> Any:
        kind = self.number("I")
        if kind == LIST:
            return self._list(self.number("I"), self.number("Q"))
        return self.text() if kind == TEXT else self.number(NUMBERS[kind])

    def _list(self, kind: int, length: int) -> Any:
        if kind in NUMBERS and length > MOST_LISTED:
            self.raw(struct.calcsize(NUMBERS[kind]) * length)
            return length
        found = []
        for _ in range(length):  # ends with the file, whatever the length is said to be
            if kind == TEXT:
                self.raw(self.number("Q"))
            else:
                found.append(self.number(NUMBERS[kind]))
        return length if kind == TEXT else found


def _read(content: _Bytes, size: int) -> tuple[GgufFile, tuple[str, ...]]:
    if content.raw(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = content.number("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version} of the format, and {VERSIONS[0]} and {VERSIONS[1]} are read")
    tensors, count = content.number("Q"), content.number("Q")
    keys = {content.text(): content.value() for _ in range(count)}
    names, types = _tensors(content, tensors)
    if (needed := sum(kind.bytes for kind in types)) > size - content.at:
        raise ValueError(f"its tensors take {needed:,} bytes, and {size - content.at:,} are there")
    arch = str(keys.get("general.architecture", "unknown"))
    sizes = {key.removeprefix(f"{arch}."): _plain(value) for key, value in keys.items() if key.startswith(f"{arch}.")}
    return GgufFile(version, arch, sizes, types, _tokenizer(keys), size), names


def _plain(value: Any) -> Any:
    """JSON has no infinite numbers."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _tensors(content: _Bytes, tensors: int) -> tuple[tuple[str, ...], tuple[GgufTensors, ...]]:
    counted, numbers = Counter[GGMLQuantizationType](), Counter[GGMLQuantizationType]()
    names = []
    for _ in range(tensors):
        names.append(content.text())
        axes = content.number("I")
        if axes > MOST_AXES:
            raise ValueError(f"a tensor of {shown(axes)} axes")
        shape = [content.number("Q") for _ in range(axes)]
        kind = GGMLQuantizationType(content.number("I"))
        content.number("Q")  # where it lies
        counted[kind] += 1
        numbers[kind] += prod(shape)
    return tuple(names), tuple(sorted(_rows(counted, numbers), key=lambda row: (-row.bytes, row.type)))


def _rows(counted: Mapping[GGMLQuantizationType, int], numbers: Mapping[GGMLQuantizationType, int]) -> Iterator[GgufTensors]:
    for kind, count in counted.items():
        block, width = GGML_QUANT_SIZES[kind]
        yield GgufTensors(kind.name, count, numbers[kind], -(-numbers[kind] // block) * width)


def _tokenizer(keys: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: keys[f"tokenizer.ggml.{name}"] for name in ("model", "pre", "tokens") if f"tokenizer.ggml.{name}" in keys}
    return found | {"chat template": "tokenizer.chat_template" in keys} if found else {}
