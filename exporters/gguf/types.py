"""Which types llama.cpp's quantiser gave the matrices of a file: where a row does not fit the type that was asked for, it takes a larger one.

K-types are made of blocks of 256 numbers, the others of 32. A row of another length is stored in a type of blocks of 32, and where
that does not fit either in 16 bits: the call succeeds, and the file is larger than one of a wider model would be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from exporters.gguf.recipe import K_BLOCK, is_k_type

NAMED = 3  # tensors in a sentence
KEEPS_MORE = 8  # experts: of models with as many, and no others, the quantiser keeps keys and values in 8 bits
OF_EIGHT = ("attn_k.weight", "attn_v.weight")


@dataclass(frozen=True)
class StoredTypes:
    """What a quantised file holds.

    Attributes:
        asked: the kind that was asked for.
        counts: matrices by type.
        other: name of every matrix in a type that the kind does not use, with that type and the length of its rows.
    """

    asked: str
    counts: dict[str, int]
    other: dict[str, tuple[str, int]]

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"asked": self.asked, "counts": self.counts, "other": {name: kind for name, (kind, _) in self.other.items()}}

    def sentence(self) -> str:
        """For people."""
        kinds = ", ".join(f"{count} as {kind}" for kind, count in self.counts.items())
        if not self.other:
            return f"{sum(self.counts.values())} matrices: {kinds}"
        names = ", ".join(f"{name} ({kind}, rows of {length})" for name, (kind, length) in list(self.other.items())[:NAMED])
        more = ", …" if len(self.other) > NAMED else ""
        block = K_BLOCK if is_k_type(self.asked) else 32
        own = "; the width of experts is the model's own" if any("_exps" in name for name in self.other) else ""
        return (
            f"{len(self.other)} of {sum(self.counts.values())} matrices are in a larger type than {self.asked} has for them, since their rows "
            f"are no multiple of {block}: {names}{more}; FFN widths that are multiples of {block} (round_to) make a smaller file{own}"
        )


def stored_types(path: Path, kind: str) -> StoredTypes:
    """Reads the types of a file that was quantised as ``kind``, such as ``q4_k_m``, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    matrices = [tensor for tensor in reader.tensors if _is_quantised(tensor)]
    counts = Counter(tensor.tensor_type.name for tensor in matrices)
    eight = _experts(reader) == KEEPS_MORE
    other = {
        tensor.name: (tensor.tensor_type.name, int(tensor.shape[0]))
        for tensor in matrices
        if tensor.tensor_type.name not in _types_of(kind) | ({"Q8_0"} if eight and tensor.name.endswith(OF_EIGHT) else set())
    }
    return StoredTypes(kind, dict(sorted(counts.items())), dict(sorted(other.items())))


def _is_quantised(tensor: gguf.ReaderTensor) -> bool:
    """Whether the quantiser takes it: weights of two axes, or of three, which are experts; but no router, and no bias of experts."""
    return len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not tensor.name.endswith("ffn_gate_inp.weight")


def _experts(reader: gguf.GGUFReader) -> int:
    arch = reader.get_field("general.architecture")
    count = None if arch is None else reader.get_field(f"{arch.contents()}.expert_count")
    return 0 if count is None else int(count.contents())


def _types_of(kind: str) -> set[str]:
    """The types that llama.cpp mixes for a kind where all rows fit: heads are in Q6_K whatever is asked for."""
    if is_k_type(kind):
        return {"Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    return {kind.upper(), "Q6_K"}
