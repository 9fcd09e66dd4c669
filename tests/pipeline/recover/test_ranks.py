"""Ranks per block: the sigmoid of CFSP's allocation, whole numbers, a sum that is kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import TrimlineError
from pipeline.recover.ranks import block_ranks, importance_ranks
from pipeline.recover.recipe import LoRASlice

DISTANCES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def plan(*facts: dict[str, float]) -> dict:
    return {"steps": [{"facts": {"block importance": measured} if measured else {}} for measured in facts]}


def shares(distances: list[float], rank: int, sign: int = 1) -> list[float]:
    """The rule written out, before it becomes whole numbers."""
    mean = sum(distances) / len(distances)
    s = [1 / (1 + math.exp(-sign * 13.1072 * (d - mean))) for d in distances]
    return [rank * value / (sum(s) / len(s)) for value in s]


@given(DISTANCES, st.integers(1, 64), st.sampled_from(["important", "pruned"]))
def test_the_sum_is_kept_and_no_block_goes_without(distances, rank, more_to):
    ranks = importance_ranks(torch.tensor(distances), rank, more_to)
    assert sum(ranks) == rank * len(distances)
    assert min(ranks) >= 1


@pytest.mark.parametrize(("more_to", "sign"), [("important", 1), ("pruned", -1)])
def test_ranks_are_the_shares_within_one(more_to, sign):
    distances = [0.49, 0.18, 0.09, 0.08, 0.1, 0.21]
    ranks = importance_ranks(torch.tensor(distances, dtype=torch.float64), 16, more_to)
    assert all(abs(found - share) < 1 for found, share in zip(ranks, shares(distances, 16, sign), strict=True))
    assert (ranks[0] == max(ranks)) == (more_to == "important")
    assert (ranks[0] == min(ranks)) == (more_to == "pruned")


def test_equal_blocks_get_equal_ranks():
    assert importance_ranks(torch.full((7,), 0.1), 5, "important") == [5] * 7


def test_uniform_reads_no_plan():
    assert block_ranks(LoRASlice(rank=3), (0, 4, 5), {}) == [3, 3, 3]


def test_the_first_step_that_measured_counts_by_original_numbers():
    lora = LoRASlice(rank=8, rank_by="importance")
    first, second = {"0": 0.1, "1": 0.9, "2": 0.1, "3": 0.4}, {"0": 0.9, "2": 0.1, "3": 0.1}
    ranks = block_ranks(lora, (0, 2, 3), plan({}, first, second))
    assert ranks == importance_ranks(torch.tensor([0.1, 0.1, 0.4], dtype=torch.float64), 8, "important")
    assert ranks[2] > ranks[0]


@pytest.mark.parametrize("document", [{}, plan(), plan({}), plan({"0": 0.1, "1": 0.1})])
def test_without_importance_it_is_refused(document):
    with pytest.raises(TrimlineError, match="no step of the plan measures it"):
        block_ranks(LoRASlice(rank_by="importance"), (0, 2), document)
