"""Routed experts in a GGUF: the stacked matrices that it wants, and the keys that say how they are chosen.

llama.cpp has gate, up and down apart, an expert after the other, each matrix with its outputs first. transformers holds gate and up in
one tensor: one after the other, or, where its matrices have their inputs first, a channel of each in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch

from pipeline.architecture.families import Axis, Carried, Family
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.gguf.arch import GgufExperts
from pipeline.rebuild.gguf.mixtures import NORMALISED

MATRICES = (gguf.MODEL_TENSOR.FFN_GATE_EXP, gguf.MODEL_TENSOR.FFN_UP_EXP, gguf.MODEL_TENSOR.FFN_DOWN_EXP)


@dataclass(frozen=True)
class ExpertPart:
    """A tensor of the file that is a part of one that counts experts.

    Attributes:
        kind: gguf's constant.
        leaf: what its name ends in.
        matrix: it is multiplied with, so that it may be in fewer bits.
        transposed: the source has inputs before outputs.
        half: which half of the source's outputs it is; None where it is all of them.
        interleaved: the halves' outputs take turns.
    """

    kind: gguf.MODEL_TENSOR
    leaf: str
    matrix: bool = False
    transposed: bool = False
    half: int | None = None
    interleaved: bool = False

    def name(self, place: str) -> str:
        """In the file; ``place`` is the source's name with its block as the file counts."""
        block = next(piece for piece in place.split(".") if piece.isdigit())
        return f"{gguf.TENSOR_NAMES[self.kind].format(bid=block)}.{self.leaf}"

    def shape(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """Of a source of that shape."""
        axes = list(source)
        if self.transposed:
            axes[1], axes[2] = axes[2], axes[1]
        if self.half is not None:
            axes[1] //= 2
        return tuple(axes)

    def of(self, source: torch.Tensor) -> torch.Tensor:
        """The part, a view of the source."""
        found = source.transpose(1, 2) if self.transposed else source
        if self.half is None:
            return found
        if self.interleaved:
            return found[:, self.half :: 2]
        width = found.shape[1] // 2
        return found[:, self.half * width : (self.half + 1) * width]


def expert_parts(family: Family) -> dict[str, tuple[ExpertPart, ...]]:
    """For every tensor that counts experts, by its name inside a block, what is made of it."""
    return {carried.name: _parts(family, carried) for carried in family.carried if carried.of_experts}


def _parts(family: Family, carried: Carried) -> tuple[ExpertPart, ...]:
    mixture = family.mixture
    assert mixture is not None, "only mixtures count experts"
    leaf = "bias" if carried.name.endswith("bias") else "weight"
    if carried.name == mixture.correction:
        return (ExpertPart(gguf.MODEL_TENSOR.FFN_EXP_PROBS_B, "bias"),)
    if carried.name.startswith(f"{mixture.router}."):
        return (ExpertPart(gguf.MODEL_TENSOR.FFN_GATE_INP, leaf),)
    gate_up, _ = mixture.weights
    matrix = leaf == "weight"
    inputs_first = _inputs_first(family, gate_up)
    if carried.name.removesuffix("_bias") == gate_up:
        gate, up, _ = MATRICES
        return tuple(ExpertPart(kind, leaf, matrix, matrix and inputs_first, half, inputs_first) for half, kind in enumerate((gate, up)))
    return (ExpertPart(MATRICES[-1], leaf, matrix, matrix and inputs_first),)


def _inputs_first(family: Family, gate_up: str) -> bool:
    """Whether the experts' matrices have their inputs before their outputs, as in gpt-oss, where gate and up also take turns."""
    shape = next(carried.shape for carried in family.carried if carried.name == gate_up)
    return shape[-1] is Axis.EXPERT_PAIR


def ffn_length(geometry: Geometry) -> int:
    """Channels of a block's FFN as llama.cpp has one number for it: of the dense ones, where some are, and else of each expert."""
    block = next((block for block in geometry.blocks if not block.experts), geometry.blocks[0])
    return block.expert_width if block.experts else block.ffn


def write_experts(writer: gguf.GGUFWriter, geometry: Geometry, experts: GgufExperts, values: Mapping[str, Any]) -> None:
    """Adds the keys of a mixture; ``values`` are the config's."""
    routing, block = geometry.routing, next(block for block in geometry.blocks if block.experts)
    writer.add_expert_count(block.experts)
    writer.add_expert_used_count(routing.chosen)
    if experts.own_width:
        writer.add_expert_feed_forward_length(block.expert_width)
    if experts.shared == "width":
        writer.add_expert_shared_feed_forward_length(block.ffn)
    if experts.shared == "count":
        writer.add_expert_shared_count(int(values["n_shared_experts"]))
    if experts.dense_first:
        writer.add_leading_dense_block_count(sum(not block.experts for block in geometry.blocks))
    if experts.normalised is None:
        writer.add_expert_weights_norm(bool(values[NORMALISED]))
    if experts.told:
        told = gguf.ExpertGatingFuncType.SIGMOID if experts.scores == "sigmoid" else gguf.ExpertGatingFuncType.SOFTMAX
        writer.add_expert_gating_func(told)
    if routing.groups > 1 and routing.chosen_groups < routing.groups:  # of all groups it is as of none
        writer.add_expert_group_count(routing.groups)
        writer.add_expert_group_used_count(routing.chosen_groups)
