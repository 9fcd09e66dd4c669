"""LLM Surgeon's maths against dense solutions of the problem that it states."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.prune.kronecker import factors
from pipeline.prune.kronecker.costs import conditional_blocks, group_costs, marginal_blocks, unit_costs
from pipeline.prune.kronecker.factors import Damped, balanced, constant_eliminated, inverse_blocks, with_constant
from pipeline.prune.kronecker.projection import Damping, Projection, Variant, activation_costs
from pipeline.prune.kronecker.thresholds import group_mask, kth_smallest, structured_threshold
from pipeline.prune.kronecker.updates import Correlation, chunks_of, element_update, structured_update

ROWS, COLUMNS = 6, 8


def moment(size: int, mean: float = 0.0) -> torch.Tensor:
    inputs = torch.randn(5 * size, size) @ torch.randn(size, size) + mean
    second = inputs.T @ inputs / len(inputs)
    return (second + second.T) / 2  # a product may differ in its two halves by rounding


def problem(rows: int = ROWS, columns: int = COLUMNS) -> tuple[torch.Tensor, Damped, Damped]:
    return torch.randn(rows, columns), Damped.by(moment(columns), 0.01), Damped.by(moment(rows), 0.1)


def dense(factor: Damped) -> torch.Tensor:
    return factor.matrix.double() + factor.added * torch.eye(len(factor.matrix), dtype=torch.float64)


def rise(change: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    return (outputs.double() @ change.double() @ inputs.double() * change.double()).sum().item() / 2


def constrained_optimum(weight: torch.Tensor, mask: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Minimises ½ dᵀ (G ⊗ A) d with d = −w on the mask, by its first-order conditions on the rest."""
    curvature = torch.kron(outputs.double(), inputs.double())
    gone, change = mask.flatten(), -weight.double().flatten()
    change[~gone] = torch.linalg.solve(curvature[~gone][:, ~gone], -curvature[~gone][:, gone] @ change[gone])
    return weight.double() + change.view_as(weight)


def mask_of(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return rows[:, None] | columns


def some(size: int, *which: int) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(which)] = True
    return mask


@pytest.mark.parametrize("width", [1, 3, 6])
def test_blocks_of_the_inverse(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "STRIP", 5)
    factor = Damped.by(moment(18), 0.01)
    whole = torch.linalg.inv(dense(factor)).view(18 // width, width, 18 // width, width)
    expected = torch.stack([whole[i, :, i] for i in range(18 // width)])
    torch.testing.assert_close(inverse_blocks(factor.root(), width), expected)


def test_blocks_of_nothing() -> None:
    assert inverse_blocks(Damped.by(torch.zeros(0, 0), 0.01).root(), 4).shape == (0, 4, 4)


def test_balancing_changes_no_product() -> None:
    inputs, outputs = moment(8) * 1e3, moment(5) * 1e-9
    ours, theirs = balanced(inputs, outputs)
    assert ours.norm() == pytest.approx(theirs.norm().item(), rel=1e-5)
    torch.testing.assert_close(torch.kron(ours, theirs), torch.kron(inputs, outputs))
    nothing = torch.zeros(5, 5)
    assert balanced(inputs, nothing)[0] is inputs


def test_an_eliminated_constant_is_one_that_adapts() -> None:
    inputs = torch.randn(200, 7) + 2
    second, mean = inputs.T @ inputs / 200, inputs.mean(0)
    factor = constant_eliminated(second, mean, damping=0.01)
    whole = Damped.by(with_constant(second, mean), 0.01).inverse()
    torch.testing.assert_close(factor.inverse(), whole[:7, :7], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_unit_costs_are_the_rise_under_the_best_update(width: int) -> None:
    weight, inputs, outputs = problem()
    costs = unit_costs(weight, outputs.matrix, conditional_blocks(inputs, width))
    for unit, cost in enumerate(costs.tolist()):
        columns = some(COLUMNS, *range(unit * width, (unit + 1) * width))
        best = constrained_optimum(weight, mask_of(some(ROWS), columns), dense(inputs), dense(outputs))
        assert cost == pytest.approx(rise(best - weight, dense(inputs), outputs.matrix), rel=1e-5)


@pytest.mark.parametrize("width", [1, 4])
def test_marginal_unit_costs_are_the_rise_without_update(width: int) -> None:
    weight, inputs, outputs = problem()
    costs = unit_costs(weight, outputs.matrix, marginal_blocks(inputs.matrix, width))
    for unit, cost in enumerate(costs.tolist()):
        change = torch.zeros_like(weight)
        change[:, unit * width : (unit + 1) * width] = -weight[:, unit * width : (unit + 1) * width]
        assert cost == pytest.approx(rise(change, inputs.matrix, outputs.matrix), rel=1e-5)


ROW_SETS = [(), (0,), (1, 2, 5)]
COLUMN_SETS = [(), (3,), (0, 4, 5, 7)]


@pytest.mark.parametrize(("rows", "columns"), itertools.product(ROW_SETS, COLUMN_SETS))
def test_the_joint_update_is_the_dense_optimum(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    weight, inputs, outputs = problem()
    r, c = some(ROWS, *rows), some(COLUMNS, *columns)
    ours = structured_update(weight, inputs, outputs, c, r, Correlation.JOINT)
    torch.testing.assert_close(ours, constrained_optimum(weight, mask_of(r, c), dense(inputs), dense(outputs)))


def test_one_structure_alone_is_optimal_in_every_form() -> None:
    weight, inputs, outputs = problem()
    for r, c in ((some(ROWS, 2), some(COLUMNS)), (some(ROWS), some(COLUMNS, 5))):
        best = constrained_optimum(weight, mask_of(r, c), dense(inputs), dense(outputs))
        for correlation in Correlation:
            torch.testing.assert_close(structured_update(weight, inputs, outputs, c, r, correlation), best)


def test_forms_of_the_structured_update_in_order_of_what_they_cost() -> None:
    weight, inputs, outputs = problem(12, 20)
    r, c = some(12, 0, 3, 4, 9), some(20, 1, 2, 3, 10, 11, 12, 13)
    costs = {
        how: rise(structured_update(weight, inputs, outputs, c, r, how) - weight, dense(inputs), dense(outputs)) for how in Correlation
    }
    assert costs[Correlation.JOINT] < costs[Correlation.SUM] < costs[Correlation.INDEPENDENT]


def test_everything_can_go() -> None:
    weight, inputs, outputs = problem()
    everything = torch.ones(ROWS, dtype=torch.bool)
    assert not structured_update(weight, inputs, outputs, some(COLUMNS, 1), everything).any()


def test_elements_at_once_are_the_dense_optimum() -> None:
    weight, inputs, outputs = problem()
    mask = torch.rand(ROWS, COLUMNS) < 0.5
    ours = element_update(weight, mask, inputs.inverse(), outputs.inverse(), most=0)
    torch.testing.assert_close(ours, constrained_optimum(weight, mask, dense(inputs), dense(outputs)))


def test_elements_in_chunks_follow_the_published_recursion() -> None:
    weight, inputs, outputs = problem()
    mask = torch.rand(ROWS, COLUMNS) < 0.5
    for cumulative in (True, False):
        expected, start = weight.double(), weight.double()
        for chunk in chunks_of(mask, 7):
            within = torch.zeros_like(mask)
            within[chunk] = mask[chunk]
            seen = expected if cumulative else start
            expected = expected + constrained_optimum(seen, within, dense(inputs), dense(outputs)) - seen
        ours = element_update(weight, mask, inputs.inverse(), outputs.inverse(), 7, cumulative)
        torch.testing.assert_close(ours, expected.masked_fill(mask, 0))


def test_chunks_are_whole_rows_filled_up() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert [(c.start, c.stop) for c in chunks_of(mask, 3)] == [(0, 3), (3, 4), (4, 6)]
    assert [(c.start, c.stop) for c in chunks_of(mask, 2)] == [(0, 1), (1, 3), (3, 4), (4, 6)]
    assert [(c.start, c.stop) for c in chunks_of(mask, 0)] == [(0, 6)]
    assert not list(chunks_of(torch.zeros(4, 3, dtype=torch.bool)))


def test_a_chunk_never_exceeds_the_limit_unless_it_is_one_row() -> None:
    mask = torch.rand(50, 30) < torch.rand(50, 1)
    chunks = list(chunks_of(mask, 40))
    assert sorted(row for c in chunks for row in range(c.start, c.stop)) == list(range(50))
    assert all(mask[c].sum() <= 40 or c.stop - c.start == 1 for c in chunks)


def test_dead_parts_cost_nothing_and_stay_zero() -> None:
    weight, a, g = torch.randn(ROWS, COLUMNS), moment(COLUMNS), moment(ROWS)
    a[3] = a[:, 3] = 0  # an input that is never there
    g[1] = g[:, 1] = 0  # an output that does not matter
    weight[:, 6] = 0
    whole = Projection.of(weight, a, g, Damping())
    rows, columns = whole.curvatures(Variant.SURGEON)
    assert rows[1] == 0
    assert columns[[3, 6]].tolist() == [0, 0]
    assert (rows > 0).sum() == ROWS - 1
    assert (columns > 0).sum() == COLUMNS - 2
    for costs, dead in ((whole.row_costs(Variant.SURGEON), [1]), (whole.column_costs(Variant.K_OBD), [3, 6])):
        assert (costs == 0).nonzero().flatten().tolist() == dead
    left = whole.without(some(ROWS, 0), some(COLUMNS, 2), Correlation.JOINT)
    assert not left[:, [2, 3, 6]].any()
    assert not left[[0, 1]].any()
    live = [i for i in range(COLUMNS) if i not in (3, 6)]
    kept = [i for i in range(ROWS) if i != 1]
    alone = Projection.of(weight[kept][:, live], a[live][:, live], g[kept][:, kept], Damping())
    expected = alone.without(some(5, 0), some(6, 2), Correlation.JOINT)
    torch.testing.assert_close(left[kept][:, live], expected)


@pytest.mark.parametrize("biased", [False, True])
def test_two_four_holds_with_dead_columns(biased: bool) -> None:
    """The published code shifts its groups by every dead column, and by one more where there is no bias."""
    columns = 24 + biased
    weight, a, g = torch.randn(10, columns), moment(columns), moment(10)
    a[5] = a[:, 5] = 0
    weight[:, 17] = 0
    projection = Projection.of(weight, a, g, Damping(outputs=0.1))
    rows, along = projection.curvatures(Variant.SURGEON)
    costs = (weight.square() * rows[:, None] * along / 2).float()[:, :24]
    mask = torch.zeros(10, columns, dtype=torch.bool)
    mask[:, :24] = group_mask(costs, 2, 4, float("inf"))
    left = projection.without_elements(mask)
    zeros = (left[:, :24] == 0).unflatten(1, (-1, 4)).sum(-1)
    assert (zeros == 2).all()
    assert mask[:, [5, 17]].all()
    if biased:
        assert (left[:, 24] != 0).all()


def test_activation_costs_count_every_batch() -> None:
    """The published L-OBD overwrites its second moment with every sequence, so that the last one decides."""
    weight, batches = torch.randn(4, 6), [torch.randn(20, 6) * scale for scale in (5.0, 1.0, 0.1)]
    every = torch.cat(batches)
    costs = activation_costs(weight, sum(batch.square().sum(0) for batch in batches) / len(every))
    brute = torch.zeros(4, 6)
    for token in every:
        brute += (weight * token).square() / 2 / len(every)
    torch.testing.assert_close(costs, brute)
    last = activation_costs(weight, batches[-1].square().sum(0) / len(every))
    assert (costs > 10 * last).all()


def test_kth_smallest_is_that_of_a_sort() -> None:
    pieces = [torch.randn(7, 9).square() * 1e-12, torch.zeros(5), torch.rand(30).round(decimals=1), torch.full((4,), 3e-42)]
    whole = torch.cat([piece.flatten() for piece in pieces]).sort().values
    for count in (1, 5, 6, 9, 10, 40, 80, len(whole)):
        assert kth_smallest(lambda: iter(pieces), count) == whole[count - 1].item()


def test_structured_threshold_is_the_largest_that_fits() -> None:
    layers = [(torch.rand(rows), torch.rand(columns)) for rows, columns in ((5, 9), (7, 4), (3, 3))]
    layers[0][0][:2] = 0.25  # ties go together
    candidates = torch.cat([cost for pair in layers for cost in pair]).sort().values

    def removed(threshold: float) -> int:
        return sum(int(((r <= threshold)[:, None] | (c <= threshold)).sum()) for r, c in layers)

    for target in range(0, 5 * 9 + 7 * 4 + 9 + 1):
        fitting = [c for c in candidates.tolist() if removed(c) <= target]
        ours = structured_threshold([r for r, _ in layers], [c for _, c in layers], target)
        assert ours == (fitting[-1] if fitting else float("-inf"))


def test_group_masks_with_ties() -> None:
    costs = torch.zeros(3, 8)
    costs[1] = torch.tensor([4.0, 3, 2, 1, 1, 1, 1, 1])
    mask = group_mask(costs, 2, 4, float("inf"))
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert mask[1].nonzero().flatten().tolist() == [2, 3, 4, 5]
    below = group_mask(costs, 2, 4, 2.5)
    assert below[1].nonzero().flatten().tolist() == [4, 5]
    assert group_costs(costs, 2, 4)[1].tolist() == [3, 2]
