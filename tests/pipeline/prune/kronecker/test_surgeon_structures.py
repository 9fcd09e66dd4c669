"""Rows and columns of every projection by itself, zeroed, as LLM Surgeon was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan
from pipeline.prune.kronecker.projection import Projection, Variant
from pipeline.prune.kronecker.updates import Correlation
from tests.pipeline.prune.methods.test_surgeon_weights import dense_weights, planned, projections, pruned_weights, small, sparse
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES

FAMILIES = ("llama", "opt")


def published(remove: float = 0.4, **more: Any) -> dict[str, Any]:
    return sparse(remove, structures="published", **more)


def zero_lines(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ~weight.any(1), ~weight.any(0)


def removed(costs: dict[str, tuple[torch.Tensor, torch.Tensor]], threshold: float) -> int:
    return sum(int(((rows <= threshold)[:, None] | (columns <= threshold)).sum()) for rows, columns in costs.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_one_threshold_for_rows_and_columns(tmp_path: Path, family: str) -> None:
    folder = small(family, tmp_path)
    plan, _ = planned(folder, published())
    whole = {name: projection for name, (_, projection) in projections(folder, 0.01).items()}
    costs = {name: (p.row_costs(Variant.SURGEON), p.column_costs(Variant.SURGEON)) for name, p in whole.items()}
    facts = plan.steps[0].facts
    total = sum(weight.numel() for weight in dense_weights(folder).values())
    every = torch.cat([torch.cat(pair) for pair in costs.values()]).unique()
    following = every[every > facts["threshold"]][0].item()
    assert removed(costs, facts["threshold"]) <= int(0.4 * total) < removed(costs, following)
    for name, weight in pruned_weights(plan, folder).items():
        rows, columns = (cost <= facts["threshold"] for cost in costs[name])
        assert zero_lines(weight)[0][rows].all()
        assert zero_lines(weight)[1][columns].all()
        counted = facts["rows and columns gone"][name.split("layers.")[1]]
        assert counted == [int(rows.sum()), int(columns.sum())]
        expected = whole[name].without(rows, columns, Correlation.SUM)
        torch.testing.assert_close(weight, expected.float(), rtol=1e-3, atol=1e-4)


def rise(plan: Plan, folder: Path, whole: dict[str, Projection]) -> float:
    """Σ over projections of ½ tr(G D A Dᵀ), damped, over what is live."""
    total = 0.0
    for name, weight in pruned_weights(plan, folder).items():
        p = whole[name]
        change = (weight.double() - p.weight)[p.rows][:, p.columns]
        inputs, outputs = (f.matrix.double() + f.added * torch.eye(len(f.matrix)).double() for f in (p.inputs, p.outputs))
        total += (outputs @ change @ inputs * change).sum().item() / 2
    return total


def test_the_joint_update_is_the_best_of_them(tmp_path: Path) -> None:
    folder = small("llama", tmp_path)
    whole = {name: projection for name, (_, projection) in projections(folder, 0.01).items()}
    by = {how: rise(planned(folder, published(correlation=how.value))[0], folder, whole) for how in Correlation}
    zeroed = rise(planned(folder, published(variant="k_obd"))[0], folder, whole)
    assert by[Correlation.JOINT] < by[Correlation.SUM] < by[Correlation.INDEPENDENT]
    assert by[Correlation.JOINT] < 0.9 * zeroed


def test_later_shots_find_what_the_earlier_made_dead(tmp_path: Path) -> None:
    """A row of up that is zero makes its column of down dead, one shot later, and then that is zero too."""
    folder = small("llama", tmp_path)
    many, _ = planned(folder, published(0.5, shots=5))
    once, _ = planned(folder, published(0.5))

    def consistent(plan: Plan) -> float:
        weights = pruned_weights(plan, folder)
        rows = torch.cat([zero_lines(weights[f"model.layers.{block}.mlp.up_proj"])[0] for block in range(2)])
        columns = torch.cat([zero_lines(weights[f"model.layers.{block}.mlp.down_proj"])[1] for block in range(2)])
        return ((rows & columns).sum() / rows.sum()).item()

    assert consistent(many) > consistent(once)
    fractions = [step.facts["zero fraction"] for step in many.steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_every_family_is_rebuilt(tmp_path: Path, family: str) -> None:
    folder = small(family, tmp_path / "dense")
    plan, _ = planned(folder, published(0.2))
    out = rebuilt(tmp_path, folder, plan, Profile.UNIFORM)
    assert json.loads((out / "gate.json").read_text())["passed"]


@pytest.mark.parametrize("variant", ["k_obd", "l_obd"])
def test_baselines_only_zero(tmp_path: Path, variant: str) -> None:
    folder = small("opt", tmp_path)
    plan, _ = planned(folder, published(0.3, variant=variant))
    before = dense_weights(folder)
    for name, weight in pruned_weights(plan, folder).items():
        assert torch.equal(weight[weight != 0], before[name][weight != 0])
    assert plan.steps[0].facts["zero fraction"] == pytest.approx(0.3, abs=0.02)


def test_the_bias_may_be_kept(tmp_path: Path) -> None:
    folder = small("opt", tmp_path)
    plan, _ = planned(folder, published(0.5, biases=False))
    for weight in pruned_weights(plan, folder).values():
        rows, columns = zero_lines(weight)
        assert rows.all() or not columns[-1]


def test_rows_and_columns_have_no_pattern(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="2:4"):
        planned(small("llama", tmp_path), published(0.5, pattern="2:4"))
