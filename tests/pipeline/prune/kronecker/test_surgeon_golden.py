"""LLM Surgeon's maths against the values of its authors' code (reference case 5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.prune.kronecker.costs import column_costs, conditional, element_costs, group_costs, marginal, row_costs
from pipeline.prune.kronecker.factors import Damped, balanced, live_columns, live_rows, with_bias
from pipeline.prune.kronecker.thresholds import group_mask, kth_smallest, structured_threshold
from pipeline.prune.kronecker.updates import Correlation, element_update, structured_update

LAYERS = ("nobias", "bias")
FRACTIONS = (10, 30, 50)


class Layer:
    """One stored layer, the bias as a last column."""

    def __init__(self, stored: dict[str, torch.Tensor], prefix: str) -> None:
        self.stored = {name.removeprefix(prefix + "."): value for name, value in stored.items() if name.startswith(prefix + ".")}
        self.weight = with_bias(self.stored["weight"], self.stored.get("bias"))
        self.inputs = Damped.by(self.stored["A"], 0.01)
        self.outputs = Damped.by(self.stored["G"], 0.1)

    def gone(self, what: str, size: int) -> torch.Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[self.stored[f"removed_{what}"]] = True
        return mask

    def element_costs(self) -> torch.Tensor:
        return element_costs(self.weight, conditional(self.outputs), conditional(self.inputs))


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "surgeon.safetensors")


@pytest.fixture(scope="module")
def scalars(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "scalars.json").read_text())["surgeon"]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest, stored: dict[str, torch.Tensor]) -> Layer:
    return Layer(stored, request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest entry, as the reference states its own accuracy."""
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def test_factors(layer: Layer) -> None:
    close(layer.inputs.inverse(), layer.stored["A_inv"], 1e-6)
    close(layer.outputs.inverse(), layer.stored["G_inv"], 1e-6)
    inputs, outputs = balanced(layer.stored["A"] * 7, layer.stored["G"] / 7)
    close(inputs, layer.stored["A"], 1e-5)
    close(outputs, layer.stored["G"], 1e-5)


def test_costs(layer: Layer) -> None:
    rows, columns = conditional(layer.outputs), conditional(layer.inputs)
    close(row_costs(layer.weight, layer.stored["A"], rows), layer.stored["cost_row"], 2e-6)
    close(column_costs(layer.weight, layer.stored["G"], columns), layer.stored["cost_column"], 2e-6)
    close(element_costs(layer.weight, rows, columns), layer.stored["cost_element"], 2e-6)


def test_costs_without_update(layer: Layer) -> None:
    rows, columns = marginal(layer.stored["G"]), marginal(layer.stored["A"])
    close(row_costs(layer.weight, layer.stored["A"], rows), layer.stored["cost_row_no_update_variant"], 2e-6)
    close(column_costs(layer.weight, layer.stored["G"], columns), layer.stored["cost_column_no_update_variant"], 2e-6)
    close(element_costs(layer.weight, rows, columns), layer.stored["cost_element_no_update_variant"], 2e-6)


def test_group_costs(layer: Layer) -> None:
    close(group_costs(layer.element_costs()[:, :40], 2, 4), layer.stored["cost_24_block"], 2e-6)


@pytest.mark.parametrize(
    ("name", "what", "correlation"),
    [
        ("structured_sum", "both", Correlation.SUM),
        ("structured_sequential", "both", Correlation.JOINT),
        ("structured_independent", "both", Correlation.INDEPENDENT),
        ("structured_rows_only", "rows", Correlation.SUM),
        ("structured_columns_only", "columns", Correlation.SUM),
    ],
)
def test_structured_updates(layer: Layer, name: str, what: str, correlation: Correlation) -> None:
    rows, columns = layer.gone("rows", 24), layer.gone("columns", layer.weight.shape[1])
    rows, columns = rows & (what != "columns"), columns & (what != "rows")
    ours = structured_update(layer.weight, layer.inputs, layer.outputs, columns, rows, correlation)
    close(ours, layer.stored[f"{name}.weight"], 1e-4)


def objective(layer: Layer, weight: torch.Tensor) -> float:
    """½ tr(G D A Dᵀ), both damped."""
    change = weight.double() - layer.weight.double()
    damped = [f.matrix.double() + f.added * torch.eye(len(f.matrix), dtype=torch.float64) for f in (layer.outputs, layer.inputs)]
    return (damped[0] @ change @ damped[1] * change).sum().item() / 2


def test_joint_update_has_the_least_objective(stored: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    for name in LAYERS:
        layer, figures = Layer(stored, name), scalars[f"{name}.objective"]
        rows, columns = layer.gone("rows", 24), layer.gone("columns", layer.weight.shape[1])
        update = {how: structured_update(layer.weight, layer.inputs, layer.outputs, columns, rows, how) for how in Correlation}
        assert objective(layer, update[Correlation.JOINT]) == pytest.approx(figures["exact_structured"], rel=1e-6)
        assert objective(layer, update[Correlation.SUM]) == pytest.approx(figures["structured_sum"], rel=1e-4)
        assert objective(layer, update[Correlation.INDEPENDENT]) == pytest.approx(figures["structured_independent"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "most", "cumulative"),
    [("max0", 0, True), ("max2000", 2000, True), ("max100", 100, True), ("max100_noadd", 100, False)],
)
def test_element_updates(layer: Layer, name: str, most: int, cumulative: bool) -> None:
    mask = layer.stored["given_mask"]
    ours = element_update(layer.weight, mask, layer.inputs.inverse(), layer.outputs.inverse(), most, cumulative)
    assert (ours[mask] == 0).all()
    close(ours, layer.stored[f"unstructured_{name}.weight"], 2e-4)


@pytest.mark.parametrize("percent", [30, 50])
def test_two_four_of_a_biased_layer(stored: dict[str, torch.Tensor], scalars: dict[str, Any], percent: int) -> None:
    layer = Layer(stored, "bias")
    ours, threshold = two_four(layer, percent / 100, columns=40)
    assert threshold == pytest.approx(scalars[f"bias.threshold_24_at_{percent}"], rel=1e-5)
    close(ours, layer.stored[f"update24_at_{percent}.weight"], 2e-4)
    assert zeros_in_groups(ours[:, :40]) == scalars[f"bias.update24_at_{percent}.groups_with_0_1_2_3_4_zeros"]


@pytest.mark.parametrize("percent", [30, 50])
def test_two_four_without_bias_does_not_share_the_published_defect(
    stored: dict[str, torch.Tensor], scalars: dict[str, Any], percent: int
) -> None:
    layer = Layer(stored, "nobias")
    ours, threshold = two_four(layer, percent / 100, columns=40)
    assert threshold == pytest.approx(scalars[f"nobias.threshold_24_at_{percent}"], rel=1e-5)
    groups = zeros_in_groups(ours)
    assert groups[1] == groups[3] == groups[4] == 0
    assert groups[2] >= 2 * percent / 100 * 240
    defective = layer.stored[f"update24_at_{percent}_UPSTREAM_DEFECT.weight"]
    assert zeros_in_groups(defective) == scalars[f"nobias.update24_at_{percent}.groups_with_0_1_2_3_4_zeros"]
    assert zeros_in_groups(defective) != groups


def two_four(layer: Layer, fraction: float, columns: int) -> tuple[torch.Tensor, float]:
    costs = layer.element_costs()[:, :columns]
    groups = group_costs(costs, 2, 4)
    threshold = kth_smallest(lambda: [groups], min(groups.numel(), int(2 * fraction * groups.numel()) + 1))
    mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
    mask[:, :columns] = group_mask(costs, 2, 4, threshold)
    return element_update(layer.weight, mask, layer.inputs.inverse(), layer.outputs.inverse()), threshold


def zeros_in_groups(weight: torch.Tensor) -> list[int]:
    return torch.bincount((weight == 0).unflatten(1, (-1, 4)).sum(-1).flatten(), minlength=5).tolist()


class Costs:
    """Rows, columns and elements of the three layers of the threshold case, dead ones at cost 0."""

    def __init__(self, stored: dict[str, torch.Tensor]) -> None:
        self.rows, self.columns, self.elements = [], [], []
        for number in range(3):
            layer = {name.split(".")[-1]: value for name, value in stored.items() if name.startswith(f"threshold.layer{number}.")}
            weight = with_bias(layer["weight"], layer.get("bias"))
            rows, columns = live_rows(weight, layer["G"]), live_columns(weight, layer["A"])
            assert torch.equal(rows, ~layer["dead_rows"])
            assert torch.equal(columns, ~layer["dead_columns"])
            self.rows.append(torch.zeros(len(rows)).masked_scatter_(rows, layer["cost_row_live"]))
            self.columns.append(torch.zeros(len(columns)).masked_scatter_(columns, layer["cost_column_live"]))
            both = rows[:, None] & columns
            self.elements.append(torch.zeros(weight.shape).masked_scatter_(both, layer["cost_element_live"]))


@pytest.mark.parametrize("percent", FRACTIONS)
def test_thresholds(stored: dict[str, torch.Tensor], scalars: dict[str, Any], percent: int) -> None:
    costs = Costs(stored)
    total = sum(cost.numel() for cost in costs.elements)
    threshold = structured_threshold(costs.rows, costs.columns, percent * total // 100)
    assert threshold == scalars[f"threshold.structured_{percent}"]
    counts = [[int((c <= threshold).sum()) for c in pair] for pair in zip(costs.rows, costs.columns, strict=True)]
    assert counts == scalars[f"threshold.structured_{percent}.removed_rows_columns_incl_dead"]
    published = percent * total // 100 + 1
    assert kth_smallest(lambda: costs.elements, published) == scalars[f"threshold.element_{percent}"]
    groups = [group_costs(cost[:, : cost.shape[1] // 4 * 4], 2, 4) for cost in costs.elements]
    blocks = sum(group.numel() for group in groups)
    published = min(blocks, 2 * percent * blocks // 100 + 1)
    assert kth_smallest(lambda: groups, published) == pytest.approx(scalars[f"threshold.block24_{percent}"], rel=1e-6)


def test_thresholds_are_of_the_reference_weights(stored: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    costs = Costs(stored)
    removed, total = scalars["threshold.structured_50.removed_weights_of_total"]
    threshold = scalars["threshold.structured_50"]
    gone = [(r <= threshold)[:, None] | (c <= threshold) for r, c in zip(costs.rows, costs.columns, strict=True)]
    assert (sum(int(g.sum()) for g in gone), sum(g.numel() for g in gone)) == (removed, total)
