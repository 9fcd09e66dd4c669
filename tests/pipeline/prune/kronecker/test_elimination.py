"""Backward elimination: every step is the cheapest there is, and the errors are those of the best reader of each size."""

from __future__ import annotations

import pytest
import torch

from pipeline.prune.compensation.least_squares import least_squares
from pipeline.prune.kronecker.elimination import AT_ONCE, eliminate, errors_in_order

DAMPING = 1e-9


def factors(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, A and G; the inputs depend on each other."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(400, size, generator=generator, dtype=torch.float64) for size in (columns, rows))
    mixed = inputs @ (torch.eye(columns, dtype=torch.float64) + torch.randn(columns, columns, generator=generator) / columns**0.5)
    return torch.randn(rows, columns, generator=generator), (mixed.T @ mixed).float(), (outputs.T @ outputs).float()


def columns_of(units: list[int], width: int) -> torch.Tensor:
    return torch.tensor([unit * width + column for unit in sorted(units) for column in range(width)])


def error(weight: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor, stay: torch.Tensor) -> float:
    """½ tr(G E) of the least-squares reader of some columns, by a dense solve."""
    change = weight.clone()
    if len(stay):
        change[:, stay] = weight[:, stay] - least_squares(weight, inputs, stay, DAMPING)[0]
    return 0.5 * (outputs @ change @ inputs @ change.T).trace().item()


@pytest.mark.parametrize(("columns", "width"), [(12, 1), (12, 3), (AT_ONCE + 37, 1), (3 * AT_ONCE, AT_ONCE)])
def test_errors_are_those_of_the_best_reader_of_each_size(columns: int, width: int) -> None:
    weight, inputs, outputs = factors(5, columns)
    found = eliminate(weight, inputs, outputs, width, DAMPING)
    units = columns // width
    assert sorted(found.order.tolist()) == list(range(units))
    assert found.errors.shape == (units + 1,)
    for kept in range(0, units + 1, max(1, units // 12)):
        stay = columns_of(found.order[:kept].tolist(), width)
        assert found.errors[kept].item() == pytest.approx(error(weight, inputs, outputs, stay), rel=1e-3, abs=1e-3)
    assert found.errors[units] == 0
    assert found.costs.sum().item() == pytest.approx(found.errors[0].item(), rel=1e-5)
    assert found.costs[found.order[0]].item() == pytest.approx((found.errors[0] - found.errors[1]).item(), rel=1e-5)


@pytest.mark.parametrize(("columns", "width"), [(10, 1), (12, 3)])
def test_what_goes_next_is_what_costs_least(columns: int, width: int) -> None:
    weight, inputs, outputs = factors(5, columns)
    found = eliminate(weight, inputs, outputs, width, DAMPING)
    for kept in range(columns // width, 0, -1):
        left = found.order[:kept].tolist()
        trials = {unit: error(weight, inputs, outputs, columns_of([u for u in left if u != unit], width)) for unit in left}
        assert min(trials, key=lambda unit: trials[unit]) == left[-1]


@pytest.mark.parametrize(("columns", "width"), [(10, 1), (12, 3)])
def test_without_correlations_units_go_by_the_loss_of_zeroing_each(columns: int, width: int) -> None:
    weight, inputs, outputs = factors(5, columns)
    found = eliminate(weight, inputs, outputs, width, DAMPING, correlation=0.0)
    zeroed = []
    for unit in range(columns // width):
        change = torch.zeros_like(weight)
        gone = columns_of([unit], width)
        change[:, gone] = weight[:, gone]
        zeroed.append(0.5 * (outputs @ change @ inputs @ change.T).trace().item())
    torch.testing.assert_close(found.costs, torch.tensor(zeroed), rtol=1e-4, atol=0)
    assert found.order.tolist() == sorted(range(columns // width), key=lambda unit: -zeroed[unit])


def test_some_correlation_is_that_of_so_much_weaker_ones() -> None:
    weight, inputs, outputs = factors(5, 10)
    weaker = 0.3 * inputs + 0.7 * inputs.diagonal().diag()
    expected, found = eliminate(weight, weaker, outputs, 1, DAMPING), eliminate(weight, inputs, outputs, 1, DAMPING, correlation=0.3)
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.errors, expected.errors, rtol=1e-5, atol=1e-6)


def test_a_copy_goes_for_nothing_and_only_once() -> None:
    weight, inputs, outputs = factors(5, 12)
    twice = torch.cat([torch.arange(12), torch.tensor([4])])
    weight = weight[:, twice]
    found = eliminate(weight, inputs[twice][:, twice], outputs, 1, DAMPING)
    assert found.order[-1].item() in (4, 12)
    assert found.errors[-2] < 1e-3 * found.errors[-3]


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    weight, inputs, outputs = factors(5, 8)
    inputs[:, 3] = inputs[3] = 0
    found = eliminate(weight, inputs, outputs, 1, 0.01)
    assert found.order[-1] == 3
    assert torch.isfinite(found.errors).all()
    assert found.errors[-2] < found.errors[-3]


def test_groups_as_wide_as_real_ones_on_two_threads() -> None:
    """KV groups of three heads of 64: torch's LU of several such matrices fails on more than one thread."""
    weight, inputs, outputs = factors(5, 3 * 192)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(eliminate(weight, inputs, outputs, 192, 0.01))
    finally:
        torch.set_num_threads(before)
    alone, together = found
    assert together.order.tolist() == alone.order.tolist()
    torch.testing.assert_close(together.errors, alone.errors)


@pytest.mark.parametrize("width", [1, 3])
def test_errors_are_losses_and_count_no_ridge(width: int) -> None:
    weight, inputs, outputs = (factor.double() for factor in factors(5, 24))
    damping = 0.3
    ridge = damping * inputs.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    found = eliminate(weight, inputs, outputs, width, damping)
    penalised = eliminate(weight, inputs, outputs, width, damping, ridge_counts=True)
    assert torch.equal(found.order, penalised.order)
    assert found.errors[-1] == 0
    for kept in range(24 // width):
        change, stay = weight.clone(), columns_of(found.order[:kept].tolist(), width)
        if kept:
            across = weight @ (inputs + ridge)[:, stay]
            change[:, stay] -= torch.linalg.solve((inputs + ridge)[stay][:, stay], across.T).T
        loss, of_ridge = (0.5 * (outputs @ change @ moment @ change.T).trace().item() for moment in (inputs, ridge))
        assert penalised.errors[kept].item() == pytest.approx(loss + of_ridge, rel=1e-6)
        assert found.errors[kept].item() == pytest.approx(loss, rel=1e-3)
        assert of_ridge > 0.01 * loss


def test_one_factorisation_gives_the_errors_of_any_order() -> None:
    weight, inputs, outputs = factors(5, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    found = errors_in_order(weight, inputs, outputs, order, 1, 1e-6)
    for kept in range(13):
        stay = columns_of(order[:kept].tolist(), 1)
        assert found[kept].item() == pytest.approx(error(weight, inputs, outputs, stay), rel=1e-3, abs=1e-3)
