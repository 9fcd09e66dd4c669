"""How many ranks of LoRA each block gets.

CFSP (arXiv 2409.13199) names a LoRA whose capacity follows the blocks' importance; formula, direction and total were
never released. What stands here is ours: the sigmoid by which CFSP's code spreads channels, applied to ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.cfsp import importance_weights
from pipeline.prune.allocation.counts import tiled_counts
from pipeline.recover.recipe import LoRASlice

FACT = "block importance"  # what a step of a plan calls the mean angular distance of its blocks


def importance_ranks(mean_distance: torch.Tensor, rank: int, more_to: str) -> list[int]:
    """Whole ranks near rank × s / mean s, at least 1, whose sum is rank × blocks; s as ``importance_weights`` gives it.

    Args:
        mean_distance: mean angular distance of each block, shape (L,).
        rank: mean over the blocks.
        more_to: ``important`` blocks get more, or the ``pruned`` ones, which are the less important.
    """
    s = importance_weights(mean_distance if more_to == "important" else -mean_distance)
    total = rank * len(s)
    return tiled_counts([total] * len(s), (rank * s / s.mean() / total).tolist(), 1)


def block_ranks(lora: LoRASlice, blocks: Sequence[int], plan: Mapping[str, Any]) -> list[int]:
    """The rank of every block of the smaller model.

    Args:
        lora: the recipe's slice.
        blocks: their numbers in the dense model.
        plan: what plan.json holds; empty without one.

    Raises:
        TrimlineError: ranks shall follow importance, and no step of the plan measured it for all these blocks.
    """
    if lora.rank_by == "uniform":
        return [lora.rank] * len(blocks)
    for step in plan.get("steps", ()):
        measured = step["facts"].get(FACT, {})
        if all(str(block) in measured for block in blocks):
            distances = torch.tensor([measured[str(block)] for block in blocks], dtype=torch.float64)
            return importance_ranks(distances, lora.rank, lora.more_to)
    raise no_importance()


def no_importance() -> TrimlineError:
    """What is said where ranks shall follow what nobody measures."""
    return TrimlineError(
        "Ranks shall follow block importance, and no step of the plan measures it.",
        "Use recover.lora.rank_by: uniform, or a step whose allocation is cfsp.",
    )
