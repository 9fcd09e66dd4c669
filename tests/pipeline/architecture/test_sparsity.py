"""The 2:4 checker against counting by hand and by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.architecture.sparsity import two_four_fraction


def brute_force(weight: torch.Tensor, axis: int) -> float:
    lines = weight.movedim(axis, -1).reshape(-1, weight.shape[axis]).tolist()
    groups = [line[i : i + 4] for line in lines for i in range(0, len(line), 4)]
    return sum(group.count(0.0) >= 2 for group in groups) / len(groups)


def test_every_pattern_of_one_group():
    for pattern in itertools.product((0.0, 1.0), repeat=4):
        assert two_four_fraction(torch.tensor([pattern])) == (1.0 if sum(pattern) <= 2 else 0.0)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_against_brute_force(axis):
    weight = torch.randn(8, 12, 16, generator=torch.Generator().manual_seed(0)).relu()
    expected = brute_force(weight, axis)
    assert 0.3 < expected < 0.9
    assert two_four_fraction(weight, axis) == pytest.approx(expected, abs=0)


def test_the_axis_matters():
    weight = torch.tensor([[1.0, 0, 0, 2], [0, 3, 4, 0], [5, 0, 6, 0], [0, 7, 0, 8]])
    assert two_four_fraction(weight, -1) == 1.0
    # With row 1 three times, columns 1 and 2 hold three non-zeros each, and columns 0 and 3 one.
    assert two_four_fraction(weight[[1, 1, 1, 0]], 0) == 0.5
    assert two_four_fraction(weight[[1, 1, 1, 0]], 1) == 1.0


def test_one_wrong_group_is_seen():
    weight = torch.zeros(64, 64)
    weight[17, 8:11] = 1
    assert two_four_fraction(weight) == 1 - 1 / 1024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_any_dtype(dtype):
    assert two_four_fraction(torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]]).to(dtype)) == 0.5


def test_negative_zero_is_a_zero():
    assert two_four_fraction(torch.tensor([[-0.0, -0.0, 1.0, 1.0]])) == 1.0


@pytest.mark.parametrize("shape", [(4, 6), (4, 0), (3, 1)])
def test_a_length_that_is_no_multiple_of_four_is_never_two_four(shape):
    assert two_four_fraction(torch.zeros(shape)) == 0.0
