"""LLM Surgeon on single weights: one threshold, correlated updates, zeros that stay, 2:4 without exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.tensors.saved_states
from pipeline.architecture.families import Linear
from pipeline.architecture.profile import Profile
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.calibrate.gradients import GradientNeeds, gradient_sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.kronecker.factors import with_bias
from pipeline.prune.kronecker.projection import Damping, Projection, Variant
from pipeline.prune.kronecker.updates import element_update
from pipeline.prune.methods.surgeon_factors import factors_of
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

WINDOWS = torch.randint(4, 100, (4, 24), generator=torch.Generator().manual_seed(3))


def sparse(remove: float = 0.5, pattern: str = "unstructured", shots: int = 1, **options: Any) -> dict[str, Any]:
    options = {"together": 200, **options}  # sets of 2000, the default, take seconds even on a tiny model
    return {"method": "llm_surgeon", "budget": {"weight": {"remove": remove}}, "pattern": pattern, "shots": shots, "options": options}


def planned(folder: Path, *steps: dict[str, Any]) -> tuple[Plan, ShrinkingModel]:
    recipe = PruneSlice.model_validate({"steps": steps})
    resolve_steps(recipe)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    return make_plan(model, WINDOWS, recipe, Events()), model


def small(family: str, folder: Path, **overrides: Any) -> Path:
    return tiny_model(family, folder, num_hidden_layers=2, **overrides)


def dense_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every projection by its full name, the bias as a last column."""
    checkpoint = Checkpoint(folder)
    found = {}
    for block in range(len(checkpoint.geometry.blocks)):
        for linear in checkpoint.geometry.family.linears:
            name = checkpoint.geometry.family.module(block, linear.name)
            bias = checkpoint.tensor(name + ".bias") if checkpoint.geometry.has_bias(linear) else None
            found[name] = with_bias(checkpoint.tensor(name + ".weight"), bias)
    return found


def pruned_weights(plan: Plan, folder: Path) -> dict[str, torch.Tensor]:
    updates = plan.updates
    return {name: with_bias(updates[name + ".weight"], updates.get(name + ".bias")) for name in dense_weights(folder)}


def projections(folder: Path, outputs_damping: float) -> dict[str, tuple[Linear, Projection]]:
    """All of them at once, from one sweep; the method holds one block's."""
    checkpoint = Checkpoint(folder)
    family, weights, found = checkpoint.geometry.family, dense_weights(folder), {}
    needs = GradientNeeds(kronecker=frozenset(linear.name for linear in family.linears))
    for block, gradients in gradient_sweep(load_model(folder, dtype=torch.float32), family, WINDOWS, needs, Events()):
        for linear in family.linears:
            name = family.module(block, linear.name)
            factors = factors_of(gradients, linear, checkpoint.geometry.has_bias(linear))
            found[name] = linear, Projection.of(weights[name], *factors, Damping(0.01, outputs_damping))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "phi3"])
def test_one_threshold_and_the_published_update(tmp_path: Path, family: str) -> None:
    folder = small(family, tmp_path)
    plan, _ = planned(folder, sparse(0.4))
    whole = projections(folder, 0.1)
    costs = {}
    for name, (_, projection) in whole.items():
        rows, columns = projection.curvatures(Variant.SURGEON)
        costs[name] = (projection.weight.double().square() * rows[:, None] * columns / 2).float()
    ordered = torch.cat([cost.flatten() for cost in costs.values()]).sort().values
    threshold = plan.steps[0].facts["threshold"]
    assert threshold == ordered[int(0.4 * len(ordered)) - 1].item()
    for name, weight in pruned_weights(plan, folder).items():
        mask, projection = costs[name] <= threshold, whole[name][1]
        assert (weight[mask] == 0).all()
        live = projection.rows[:, None] & projection.columns
        part = mask[projection.rows][:, projection.columns]
        best = element_update(projection.live, part, projection.inputs.inverse(), projection.outputs.inverse(), 200)
        torch.testing.assert_close(weight[live].view_as(best), best.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("remove", [0.1, 0.5, 0.77])
def test_the_budget_is_met_exactly(tmp_path: Path, remove: float) -> None:
    folder = small("llama", tmp_path)
    plan, model = planned(folder, sparse(remove))
    zeros = sum(int((plan.updates[name] == 0).sum()) for name in plan.sparse)
    assert zeros == int(remove * model.geometry.decoder_parameters())
    assert plan.steps[0].facts["zero fraction"] == pytest.approx(remove, abs=1e-4)
    assert set(plan.sparse.values()) == {"unstructured"}


def test_biases_may_go_or_stay(tmp_path: Path) -> None:
    folder = small("opt", tmp_path)
    published, kept = planned(folder, sparse())[0], planned(folder, sparse(biases=False))[0]
    before = dense_weights(folder)

    def gone(plan: Plan) -> int:
        """Biases that went without their rows: a row whose gradient is always zero goes as a whole."""
        return sum(int((weight[:, -1] == 0)[weight[:, :-1].any(1)].sum()) for weight in pruned_weights(plan, folder).values())

    assert all(weight.shape == before[name].shape for name, weight in pruned_weights(published, folder).items())
    assert gone(published) > 0
    assert gone(kept) == 0


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_two_four_holds_in_every_group(tmp_path: Path, family: str) -> None:
    folder = small(family, tmp_path / "dense", **({"attention_bias": True} if family == "llama" else {}))
    plan, _ = planned(folder, sparse(pattern="2:4", shots=2))
    assert set(plan.sparse) == {name + ".weight" for name in dense_weights(folder)}
    for name in plan.sparse:
        assert two_four_fraction(plan.updates[name]) == 1.0
        assert 0.5 <= (plan.updates[name] == 0).double().mean() < 0.6  # 0.5 but for channels that never fire
    out = rebuilt(tmp_path, folder, plan, Profile.UNIFORM)
    assert json.loads((out / "gate.json").read_text())["passed"]
    assert all(two_four_fraction(Checkpoint(out).tensor(name)) == 1.0 for name in plan.sparse)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_single_weights_of_every_family_are_zero_in_the_rebuilt_model(tmp_path: Path, family: str) -> None:
    folder = small(family, tmp_path / "dense")
    plan, _ = planned(folder, sparse(0.4, shots=2))
    out = rebuilt(tmp_path, folder, plan, Profile.UNIFORM)
    assert json.loads((out / "gate.json").read_text())["passed"]
    weights = torch.cat([Checkpoint(out).tensor(name + ".weight").flatten() for name in dense_weights(folder)])
    assert (weights == 0).double().mean() == pytest.approx(0.4, abs=0.02)  # biases are among what may go


def test_intermediate_shots_have_whole_groups_or_none(tmp_path: Path) -> None:
    folder = small("llama", tmp_path)
    recipe = PruneSlice.model_validate({"steps": [sparse(pattern="2:4", shots=2)]})
    counts = []

    class Noting(ShrinkingModel):
        def replace(self, name: str, value: torch.Tensor) -> None:
            counts.append(torch.bincount((value == 0).unflatten(1, (-1, 4)).sum(-1).flatten(), minlength=5))
            super().replace(name, value)

    make_plan(Noting(load_model(folder, dtype=torch.float32), Checkpoint(folder)), WINDOWS, recipe, Events())
    first, second = sum(counts[:14]), sum(counts[14:])
    assert first[[1, 3, 4]].tolist() == second[[0, 1, 3, 4]].tolist()[1:] == [0, 0, 0]
    assert first[0] == first[2]
    assert second[0] == 0


def test_zeros_stay_from_shot_to_shot(tmp_path: Path) -> None:
    folder = small("llama", tmp_path)
    once, thrice = planned(folder, sparse(1 / 6))[0], planned(folder, sparse(0.5, shots=3))[0]
    assert [step.facts["zero fraction"] for step in thrice.steps] == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=1e-4)
    for name in once.sparse:
        assert not thrice.updates[name][once.updates[name] == 0].any()


def test_a_smaller_model_gets_whole_groups_of_what_is_left(tmp_path: Path) -> None:
    folder = small("qwen2", tmp_path / "dense")
    narrow = {"method": "llm_surgeon", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"keep": 1}}, "round_to": 8}
    plan, _ = planned(folder, narrow, sparse(pattern="2:4"))
    out = rebuilt(tmp_path, folder, plan, Profile.FREE)
    assert json.loads((out / "gate.json").read_text())["passed"]
    assert all(two_four_fraction(Checkpoint(out).tensor(name)) == 1.0 for name in plan.sparse)


def test_factors_in_files_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small("phi3", tmp_path)
    held = planned(folder, sparse())[0]
    monkeypatch.setattr(pipeline.tensors.saved_states, "MEMORY_LIMIT", 0)
    filed = planned(folder, sparse())[0]
    assert all(torch.equal(filed.updates[name], value) for name, value in held.updates.items())


@pytest.mark.parametrize("variant", ["k_obd", "l_obd"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_baselines_only_zero(tmp_path: Path, variant: str, pattern: str) -> None:
    folder = small("opt", tmp_path)
    plan, _ = planned(folder, sparse(pattern=pattern, variant=variant))
    before = dense_weights(folder)
    for name, weight in pruned_weights(plan, folder).items():
        stays = weight != 0
        assert torch.equal(weight[stays], before[name][stays])
    assert plan.steps[0].facts["zero fraction"] == pytest.approx(0.5, abs=0.01)


def test_the_update_recovers_loss(tmp_path: Path) -> None:
    """On the tokens it was fitted to, against plain zeros of the same budget."""
    folder = small("llama", tmp_path)

    def logits(plan: Plan | None) -> torch.Tensor:
        model = load_model(folder, dtype=torch.float32)
        if plan is not None:
            model.load_state_dict(dict(plan.updates), strict=False)
        with torch.inference_mode():
            return model(WINDOWS).logits.log_softmax(-1)

    def divergence(plan: Plan) -> float:
        dense = logits(None)
        return torch.nn.functional.kl_div(logits(plan), dense, log_target=True, reduction="batchmean").item()

    updated, zeroed = planned(folder, sparse(0.3))[0], planned(folder, sparse(0.3, variant="k_obd"))[0]
    assert divergence(updated) < divergence(zeroed)


def test_groups_that_do_not_fit_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    folder = small("llama", tmp_path, intermediate_size=98)
    with pytest.raises(TrimlineError, match="98"):
        planned(folder, sparse(pattern="2:4"))


@pytest.mark.parametrize("options", [{"variant": "magic"}, {"damping_inputs": 0.0}, {"together": -1}, {"max_correlate": 2000}])
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TrimlineError):
        planned(small("llama", tmp_path), sparse(**options))
