"""Single weights through the whole prune stage: what the plan says, what the rebuilt checkpoint holds, and that they agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.families import Point
from pipeline.architecture.profile import Profile
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import activation_norm
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.methods.wanda import wanda_score
from pipeline.prune.model.masks import n_m
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

METHODS = ("magnitude", "wanda", "sparsegpt", "gblm")
WINDOWS = torch.randint(4, 100, (6, 32), generator=torch.Generator().manual_seed(3))
NARROW = {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "round_to": 8, "compensation": "least_squares"}


def sparse(method: str, pattern: str = "2:4", remove: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"method": method, "budget": {"weight": {"remove": remove}}, "pattern": pattern} | more


def planned(folder: Path, *steps: dict[str, Any]) -> tuple[Plan, ShrinkingModel]:
    recipe = PruneSlice.model_validate({"steps": steps})
    resolve_steps(recipe)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    return make_plan(model, WINDOWS, recipe, Events()), model


def projections(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight inside the blocks."""
    checkpoint = Checkpoint(folder)
    family = checkpoint.geometry.family
    for number, block in enumerate(checkpoint.geometry.blocks):
        for linear, _ in checkpoint.geometry.linears(block):
            name = family.module(number, linear.name) + ".weight"
            yield name, checkpoint.tensor(name)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(WINDOWS, use_cache=False).logits


def demand_passed(folder: Path) -> None:
    assert json.loads((folder / "gate.json").read_text())["passed"]


@pytest.mark.parametrize("method", [*METHODS, "llm_surgeon"])
def test_four_eight_survives_the_rebuild(tmp_path: Path, method: str) -> None:
    source = tiny_model("llama", tmp_path / "dense")
    plan, _ = planned(source, sparse(method, "4:8"))
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM)
    demand_passed(out)
    found = dict(projections(out))
    assert plan.sparse == dict.fromkeys(found, "4:8")
    for name, weight in found.items():
        assert ((weight == 0).unflatten(1, (-1, 8)).sum(-1) >= 4).all(), name


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
@pytest.mark.parametrize("method", METHODS)
def test_two_four_survives_the_rebuild(tmp_path: Path, family: str, method: str) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan, model = planned(source, sparse(method))
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM)
    demand_passed(out)
    found = dict(projections(out))
    assert plan.sparse == dict.fromkeys(found, "2:4")
    assert {name: two_four_fraction(weight) for name, weight in found.items()} == dict.fromkeys(found, 1.0)
    assert all((weight == 0).float().mean() == 0.5 for weight in found.values())
    for name, weight in found.items():
        assert torch.equal(model.model.get_parameter(name), weight), name


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
@pytest.mark.parametrize("method", METHODS)
def test_unstructured_survives_the_rebuild(tmp_path: Path, family: str, method: str) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan, _ = planned(source, sparse(method, "unstructured", 0.4))
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM)
    demand_passed(out)
    for name, weight in projections(out):
        assert (weight == 0).float().mean() == pytest.approx(0.4, abs=0.02), name
        if method in ("wanda", "gblm"):
            assert set((weight == 0).sum(1).tolist()) == {int(weight.shape[1] * 0.4)}, name
    assert plan.steps[0].facts["zero fraction"] == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("biases", [{"attention_bias": True, "mlp_bias": True}])
def test_models_with_biases(tmp_path: Path, method: str, biases: dict[str, bool]) -> None:
    source = tiny_model("llama", tmp_path / "dense", **biases)
    plan, _ = planned(source, sparse(method))
    out = rebuilt(tmp_path, source, plan, Profile.UNIFORM)
    demand_passed(out)
    dense, smaller = Checkpoint(source), Checkpoint(out)
    names = [name for name in smaller.locations if name.endswith(".bias")]
    assert len(names) == 4 * 7
    assert all(torch.equal(dense.tensor(name), smaller.tensor(name)) for name in names)


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("method", METHODS)
def test_first_smaller_then_two_four(tmp_path: Path, family: str, method: str) -> None:
    source = tiny_model(family, tmp_path / "dense")
    groups = {"method": "cfsp_extended", "budget": {"kv_group": {"remove": 0.5}}, "compensation": "least_squares"}
    depth = {"method": "block_influence", "budget": {"layer": {"keep": 3}}}
    plan, _ = planned(source, depth, NARROW, groups, sparse(method))
    out = rebuilt(tmp_path, source, plan, Profile.FREE)
    demand_passed(out)
    found = dict(projections(out))
    assert sum(block.ffn for block in Checkpoint(out).geometry.blocks) == 3 * 48
    assert all(two_four_fraction(weight) == 1.0 for weight in found.values())
    assert len(plan.sparse) == len(found)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_gone_takes_no_part(tmp_path: Path, method: str) -> None:
    """Pruning after cutting is pruning of the smaller model: the same as of one that was rebuilt in between."""
    source = tiny_model("llama", tmp_path / "dense")
    narrow, _ = planned(source, NARROW)
    smaller = rebuilt(tmp_path, source, narrow, Profile.DECILM)
    (tmp_path / "again").mkdir()
    afterwards = rebuilt(tmp_path / "again", smaller, planned(smaller, sparse(method))[0], Profile.DECILM)
    (tmp_path / "together").mkdir()
    together = rebuilt(tmp_path / "together", source, planned(source, NARROW, sparse(method))[0], Profile.DECILM)
    different = total = 0
    for (name, one), (_, other) in zip(projections(afterwards), projections(together), strict=True):
        assert one.shape == other.shape, name
        different, total = different + int(((one == 0) != (other == 0)).sum()), total + one.numel()
    assert different <= 1e-3 * total


def test_blocks_are_measured_dense_behind_pruned_ones(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path)
    plan, _ = planned(source, sparse("wanda"))
    family, needs = Checkpoint(source).geometry.family, Needs(squares=frozenset(Point))
    model = load_model(source, dtype=torch.float32)
    before, behind = dict(sweep(model, family, WINDOWS, needs, Events())), dict(plan.updates)
    agree: dict[bool, list[bool]] = {True: [], False: []}
    for block in range(4):
        measured = dict(sweep(model, family, WINDOWS, needs, Events()))[block]
        for linear in family.linears:
            name = family.module(block, linear.name) + ".weight"
            weight = model.get_parameter(name)
            for pruned, seen in ((True, measured), (False, before[block])):
                scores = wanda_score(weight.detach(), activation_norm(seen.inputs[linear.point].squares, len(WINDOWS)))
                agree[pruned].append(torch.equal(n_m(scores, 2, 4), behind[name] == 0))
        for linear in family.linears:
            name = family.module(block, linear.name) + ".weight"
            model.get_parameter(name).data.copy_(behind[name])
    assert all(agree[True])
    assert all(agree[False][:7])  # nothing is pruned before the first block
    assert not any(agree[False][7:])


def test_shots_keep_what_went(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path)
    plan, _ = planned(source, sparse("wanda", "unstructured", 0.6, shots=3))
    assert [step.facts["zero fraction"] for step in plan.steps] == pytest.approx([0.2, 0.4, 0.6], abs=0.02)


def test_solving_beats_choosing_and_inputs_beat_magnitude(tmp_path: Path) -> None:
    """On the tokens that everything was calibrated with."""
    source = tiny_model("llama", tmp_path)
    expected = logits(load_model(source, dtype=torch.float32))
    errors = {method: (logits(planned(source, sparse(method))[1].model) - expected).square().mean().item() for method in METHODS}
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_widths_that_hold_no_whole_groups_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path, intermediate_size=90)
    with pytest.raises(TrimlineError, match=r"layers\.0\.mlp\.down_proj has 90 inputs.*multiple of 4, which the pattern 2:4 needs"):
        planned(source, sparse("wanda"))
    planned(source, sparse("wanda", "unstructured"))


def test_groups_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="2:4 cannot come in several shots"):
        planned(tiny_model("llama", tmp_path), sparse("wanda", shots=2))


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (sparse("cfsp"), "cfsp does not score weight"),
        (sparse("wanda", "4:2"), "no pattern of zeros"),
        (sparse("wanda", "2:4", 0.6), "removes 0.5 of the weights, and the budget says 0.6"),
        (sparse("wanda") | {"budget": {"weight": {"keep": 3}}}, "names no fraction"),
        (sparse("sparsegpt", options={"block": 64}), "block_size"),
        (sparse("gblm", options={"norm": "l3"}), "'norm' of the method gblm"),
    ],
)
def test_steps_that_cannot_be(step: dict[str, Any], match: str) -> None:
    with pytest.raises(TrimlineError, match=match):
        resolve_steps(PruneSlice.model_validate({"steps": [step]}))
