from __future__ import annotations

import pytest
import torch

from pipeline.common.errors import TrimlineError
from pipeline.prune.compensation.least_squares import least_squares


def problem(channels: int = 24, rows: int = 10, tokens: int = 400, mean: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    mixing = torch.randn(channels, channels) / channels**0.5
    return torch.randn(rows, channels), torch.randn(tokens, channels) @ mixing + mean


def test_it_is_the_brute_force_optimum() -> None:
    weight, inputs = problem()
    kept = torch.arange(0, 24, 2)
    gram = inputs.T @ inputs
    updated, shift = least_squares(weight, gram, kept, damping=1e-9)
    solution = torch.linalg.lstsq(inputs[:, kept].double(), inputs.double() @ weight.T.double()).solution.T
    torch.testing.assert_close(updated.double(), solution, atol=1e-4, rtol=1e-4)
    assert shift is None


def test_the_ridge_pulls_towards_the_weights_as_they_were() -> None:
    weight, inputs = problem()
    kept = torch.arange(12)
    gram = inputs.T @ inputs
    torch.testing.assert_close(least_squares(weight, gram, kept, damping=1e12)[0], weight[:, kept], atol=1e-5, rtol=0)
    ridge = 0.5 * gram[:12, :12].diagonal().mean()
    system = gram[:12, :12] + ridge * torch.eye(12)
    expected = torch.linalg.solve(system, (weight @ gram[:, :12] + ridge * weight[:, :12]).T).T
    torch.testing.assert_close(least_squares(weight, gram, kept, damping=0.5)[0], expected, atol=1e-3, rtol=1e-3)


def test_it_lowers_the_output_error_of_plain_removal() -> None:
    weight, inputs = problem()
    kept = torch.arange(12)
    updated, _ = least_squares(weight, inputs.T @ inputs, kept, damping=0.01)
    target = inputs @ weight.T
    plain = (target - inputs[:, kept] @ weight[:, kept].T).square().sum()
    assert (target - inputs[:, kept] @ updated.T).square().sum() < 0.8 * plain


def test_a_bias_takes_up_the_means() -> None:
    weight, inputs = problem(mean=3.0)
    kept = torch.arange(0, 24, 3)
    updated, shift = least_squares(weight, inputs.T @ inputs, kept, 1e-9, total=inputs.sum(0), tokens=len(inputs))
    with_one = torch.cat((inputs[:, kept], torch.ones(len(inputs), 1)), dim=1).double()
    solution = torch.linalg.lstsq(with_one, inputs.double() @ weight.T.double()).solution.T
    torch.testing.assert_close(updated.double(), solution[:, :-1], atol=2e-3, rtol=2e-3)
    assert shift is not None
    torch.testing.assert_close(shift.double(), solution[:, -1], atol=2e-3, rtol=2e-3)


def test_dead_inputs_do_not_break_it() -> None:
    weight, inputs = problem()
    inputs[:, :6] = 0
    updated, _ = least_squares(weight, inputs.T @ inputs, torch.arange(12), damping=0.01)
    assert torch.isfinite(updated).all()
    torch.testing.assert_close(updated[:, :6], weight[:, :6])


@pytest.mark.parametrize("dead", [True, False])
def test_all_zero_statistics_leave_the_weights(dead: bool) -> None:
    weight, _ = problem()
    gram = torch.zeros(24, 24) if dead else torch.eye(24)
    updated, _ = least_squares(weight, gram, torch.arange(12), damping=0.01)
    torch.testing.assert_close(updated, weight[:, :12])


@pytest.mark.parametrize("gram", [torch.full((4, 4), torch.nan), -torch.eye(4)])
def test_moments_that_cannot_be_factorised_are_a_sentence(gram: torch.Tensor) -> None:
    with pytest.raises(TrimlineError, match=r"second moments of 2 inputs .* Give a larger damping"):
        least_squares(torch.ones(3, 4), gram, torch.tensor([0, 2]), 0.01)
