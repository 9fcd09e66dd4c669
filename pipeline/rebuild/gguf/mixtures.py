"""Whether llama.cpp's architecture computes a mixture: how its router chooses and weighs, and which sizes it has one key for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.gguf.arch import GgufArch, GgufExperts

MOST = 512  # experts of a block: LLAMA_MAX_EXPERTS
NORMALISED = "norm_topk_prob"  # config key; a model whose config has none always divides the weights of the chosen by their sum
# Types that llama.cpp has an architecture for which computes something else.
NOT_ALIKE = {
    "phimoe": "llama.cpp's phimoe weighs the chosen experts by one softmax; this model leaves out of each weight's softmax what is far below "
    "the best expert (SparseMixer, arXiv 2409.12136).",
}
ALIKE = "Use profile 'uniform', with all blocks alike."

Obstacle = tuple[str, str]  # what stands against it, and what to do; empty where there is nothing


def other_experts(result: Geometry, row: GgufArch, blocks: tuple[BlockShape, ...], values: Mapping[str, Any]) -> Iterator[Obstacle]:
    """What the architecture would compute differently, or has no key for; nothing where the family is no mixture.

    Args:
        result: the model.
        row: the architecture.
        blocks: those that are written.
        values: of the config.
    """
    if result.family.mixture is None:
        return
    if row.experts is None:
        yield f"llama.cpp's {row.name} has no experts.", ""
        return
    yield from _other_weights(row, row.experts, values)
    yield from _other_sizes(result, row, row.experts, blocks)


def _other_weights(row: GgufArch, experts: GgufExperts, values: Mapping[str, Any]) -> Iterator[Obstacle]:
    stated = values.get(NORMALISED, True)
    if experts.normalised is not None and stated is not experts.normalised:
        how = "divides the weights of the chosen experts by their sum" if experts.normalised else "takes the router's weights as they are"
        yield f"llama.cpp's {row.name} always {how}, and this model's {NORMALISED} is {stated}.", ""
    for key, value in experts.fixed.items():
        if values.get(key, value) != value:
            yield f"llama.cpp's {row.name} computes with a {key} of {value}, and this model's is {values[key]}.", ""


def _other_sizes(result: Geometry, row: GgufArch, experts: GgufExperts, blocks: tuple[BlockShape, ...]) -> Iterator[Obstacle]:
    mixtures = [block for block in blocks if block.experts]
    dense = [block for block in blocks if not block.experts]
    if len({(block.experts, block.expert_width, block.ffn) for block in mixtures}) > 1:
        yield f"llama.cpp's {row.name} has one number of experts for all blocks, and one width.", ALIKE
    if not mixtures:
        yield f"llama.cpp's {row.name} needs experts, and no block of this model has any.", ""
    elif mixtures[0].experts > MOST:
        yield f"llama.cpp holds at most {MOST} experts, and this model has {mixtures[0].experts}.", ""
    if dense and not experts.dense_first:
        yield f"llama.cpp's {row.name} has experts in every block, and this model has {len(dense)} without.", ALIKE
    if tuple(blocks[: len(dense)]) != tuple(dense) or len({block.ffn for block in dense}) > 1 or not all(block.ffn for block in dense):
        yield f"llama.cpp's {row.name} has dense FFNs in the first blocks only, all of one width.", ALIKE
    if len({block.kv_groups for block in blocks}) > 1 or not blocks[0].kv_groups:
        yield f"llama.cpp's {row.name} has attention in every block, with one number of KV groups.", ALIKE
    if Sublayer.FFN in result.family.cuttable and experts.shared == "width" and any(not block.ffn for block in mixtures):
        yield f"llama.cpp's {row.name} needs a shared expert, and this model's has no channels left.", "Keep some FFN channels."
