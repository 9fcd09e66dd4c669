"""As which of llama.cpp's architectures a model can be written, or why as none: read by its exporter and by the consumers table.

Most of llama.cpp's architectures create every block alike, and compute on without a word where a config says more than they
know. ``deci`` has sizes per block and computes as Llama does, but for two traps: it skips the attention of a block without
FFN, and does not load where the first block has no attention. Both are avoided exactly, by a sublayer of zeros, which adds
nothing to the stream. What follows was read in the source of llama.cpp (as of llama-cpp-python 0.3.36); docs/gguf.md says
what was run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.architecture.families import Family, Point
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.common.errors import TrimlineError, shown

DECI = "deci"
LLAMA_LIKE = ("llama", DECI)
ROPE_TYPES = ("default", "linear", "llama3")
PAD_FFN = 32  # channels of an FFN of zeros: the block size of llama.cpp's simplest quantisers
USE_OTHER = "Serve it with another runtime."


@dataclass(frozen=True)
class GgufForm:
    """How a model is written for llama.cpp.

    Attributes:
        arch: the architecture's name.
        kept: numbers of the blocks that are written; one without attention and FFN computes nothing and is left out.
        blocks: their sizes in the file; a sublayer that the model lacks there is written as zeros.
    """

    arch: str
    kept: tuple[int, ...]
    blocks: tuple[BlockShape, ...]

    @property
    def permuted(self) -> bool:
        """Whether llama.cpp pairs neighbouring channels in its rotary embedding, and wants q and k in that order."""
        return self.arch in LLAMA_LIKE


class NoGgufForm(TrimlineError):
    """llama.cpp has no architecture that computes this model."""


def gguf_form(result: Geometry, config: Mapping[str, Any]) -> GgufForm:
    """The architecture that computes the model.

    Raises:
        NoGgufForm: there is none, or it would load the file and compute something else; says what to change.
    """
    family = result.family
    if family.gguf_arch is None:
        raise NoGgufForm(f"llama.cpp has no architecture for {family.model_type}.", USE_OTHER)
    _check_computation(family, config)
    kept = tuple(number for number, block in enumerate(result.blocks) if block.ffn or block.kv_groups)
    blocks = tuple(result.blocks[number] for number in kept)
    obstacle = _own_obstacle(result, blocks)
    if obstacle is None:
        return GgufForm(family.gguf_arch, kept, blocks)
    if family.decilm is None:
        raise obstacle
    return GgufForm(DECI, kept, tuple(_padded(block, first=number == 0) for number, block in enumerate(blocks)))


def _own_obstacle(result: Geometry, blocks: tuple[BlockShape, ...]) -> NoGgufForm | None:
    """Why the family's own architecture does not hold the result; None where it does."""
    family, arch = result.family, result.family.gguf_arch
    if len(set(blocks)) != 1 or not (blocks[0].ffn and blocks[0].kv_groups):
        why = f"llama.cpp's {arch} has one size for all blocks; its deci has sizes per block, and computes as Llama, not as {family.model_type}."
        return NoGgufForm(why, "Use profile 'uniform', with all blocks alike.")
    heads = blocks[0].kv_groups * result.queries_per_group
    if family.gguf_square and heads * result.head_dim != result.hidden:
        why = f"llama.cpp's {arch} takes hidden size / heads for head_dim, and this model has {heads} heads of {result.head_dim}."
        return NoGgufForm(why, "Keep all KV groups.")
    for linear in family.linears:
        if arch not in LLAMA_LIKE and linear.point is not Point.ATTENTION_INPUT and result.has_bias(linear):
            why = f"llama.cpp's {arch} has no bias on {linear.name}."
            return NoGgufForm(why, "Compensate by least squares, which needs no new bias.")
    return None


def _padded(block: BlockShape, first: bool) -> BlockShape:
    """The sizes that deci computes rightly."""
    if block.kv_groups:
        return BlockShape(block.ffn or PAD_FFN, block.kv_groups)
    return BlockShape(block.ffn, 1 if first else 0)


def _check_computation(family: Family, config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise NoGgufForm(f"llama.cpp computes {family.model_type} with SiLU, and this model's activation is {activation}.", USE_OTHER)
    rope = rope_type(config)
    if rope not in ROPE_TYPES:
        raise NoGgufForm(f"Rotary embeddings of type {rope!r} are not written for llama.cpp here.", USE_OTHER)
    rotated = config.get("partial_rotary_factor") or _rotary(config).get("partial_rotary_factor") or 1
    if rotated != 1:
        raise NoGgufForm(f"This model rotates only {rotated} of each head, which is not written for llama.cpp here.", USE_OTHER)


def rope_type(config: Mapping[str, Any]) -> str:
    """The kind of rotary embedding that a config.json names, in the old spelling or the new."""
    named = _rotary(config)
    return str(named.get("rope_type") or named.get("type") or "default")


def _rotary(config: Mapping[str, Any]) -> Mapping[str, Any]:
    named = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(named, Mapping):
        raise TrimlineError(f"config.json has an unusable rope_parameters: {shown(named)}.", "Correct the config.")
    return named
