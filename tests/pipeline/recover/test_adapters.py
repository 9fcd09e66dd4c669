"""Adapters beside the projections of every family, and back into the weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.live.loading import load_model
from pipeline.recover.adapters import MaskedLinear, adapted, merged
from pipeline.recover.recipe import LoRASlice
from pipeline.recover.zeros import projection_weights
from tests.pipeline.rebuild.cases import absent_parts, anything, rebuilt_tiny
from tests.tiny import TINY_FAMILIES, tiny_model

TOKENS = torch.arange(4, 36).view(2, 16)


def wrapped(folder, recipe=None, ranks=None):
    geometry = Checkpoint(folder).geometry
    recipe = recipe or LoRASlice(rank=3)
    model = adapted(load_model(folder), geometry, recipe, ranks or [recipe.rank] * len(geometry.blocks))
    return model, geometry


def randomised(model, seed=0):
    """B starts at zero, so that an untrained adapter adds nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def layers(model):
    found = model.get_base_model().named_modules()
    return {name: module for name, module in found if isinstance(module, MaskedLinear)}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_projection_of_a_family_gets_one_and_nothing_else_trains(family, tmp_path):
    model, geometry = wrapped(tiny_model(family, tmp_path))
    assert sorted(f"{name}.weight" for name in layers(model)) == sorted(projection_weights(geometry))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


@pytest.mark.parametrize(
    ("family", "choose", "profile"),
    [("llama", absent_parts, Profile.DECILM), ("opt", anything, Profile.FREE), ("qwen3", anything, Profile.FREE)],
)
def test_uneven_blocks_get_adapters_where_they_have_projections(family, choose, profile, tmp_path):
    folder = rebuilt_tiny(tmp_path, family, choose, profile)
    model, geometry = wrapped(folder)
    assert sorted(f"{name}.weight" for name in layers(model)) == sorted(projection_weights(geometry))
    for name, layer in layers(model).items():
        delta = layer.get_delta_weight("default")
        assert delta.shape == Checkpoint(folder).shape(f"{name}.weight")


@pytest.mark.parametrize("targets", [("attention",), ("ffn",)])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_targets_are_sublayers(family, targets, tmp_path):
    model, geometry = wrapped(tiny_model(family, tmp_path), LoRASlice(rank=3, targets=targets))
    wanted = {linear.name for linear in geometry.family.linears if linear.sublayer.value in targets}
    assert {name.removeprefix(f"{geometry.family.blocks}.")[2:] for name in layers(model)} == wanted


def test_each_block_has_its_rank_and_all_have_one_scaling(tmp_path):
    folder = tiny_model("llama", tmp_path, num_hidden_layers=12)
    ranks = [4 + (number * 5) % 7 for number in range(12)]
    model, _ = wrapped(folder, LoRASlice(rank=8, alpha=12.0), ranks)
    for name, layer in layers(model).items():
        assert layer.r["default"] == ranks[int(name.split(".")[2])], name
        assert layer.scaling["default"] == pytest.approx(12.0 / 8)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_merging_keeps_what_the_model_computes_and_every_zero(share, tmp_path):
    folder = tiny_model("llama", tmp_path)
    model, geometry = wrapped(folder)
    with torch.no_grad():
        for layer in layers(model).values():
            layer.dense[torch.rand_like(layer.dense) < share] = 0
            layer.trains_masked = layer.dense.eq(0).double().mean() >= 0.05
    randomised(model)
    zeros = {name: layer.dense.eq(0) for name, layer in layers(model).items()}
    with torch.no_grad():
        expected = model(TOKENS).logits
        plain, record = merged(model)
        found = plain(TOKENS).logits
    assert record["passed"]
    assert record["projections"] == len(zeros)
    assert all((plain.get_submodule(name).weight[places] == 0).all() for name, places in zeros.items())
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in load_model(folder).named_parameters()}
    if share in (0.0, 0.5):  # a few zeros are not worth a masked product at every step; the merge drops what would fill them
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_training_sees_the_masked_product(tmp_path):
    """Outputs and gradients are those of W + s · (B A ⊙ [W ≠ 0]), written out."""
    model, _ = wrapped(tiny_model("llama", tmp_path))
    layer = layers(randomised(model))["model.layers.1.mlp.up_proj"]
    with torch.no_grad():
        layer.dense[torch.rand_like(layer.dense) < 0.5] = 0
    layer.trains_masked = True
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    inputs, direction = torch.randn(3, 64), torch.randn(3, 96)
    (layer(inputs) * direction).sum().backward()
    found = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    effective = layer.dense + layer.scaling["default"] * (b @ a) * (layer.dense != 0)
    torch.testing.assert_close(layer(inputs), linear(inputs, effective))
    (linear(inputs, effective) * direction).sum().backward()
    torch.testing.assert_close(found, (a.grad, b.grad))


def test_a_wrong_merge_is_a_failed_gate(tmp_path, monkeypatch):
    model, _ = wrapped(tiny_model("llama", tmp_path))
    randomised(model)
    right = MaskedLinear.merge

    def wrong(layer, *arguments, **named):
        right(layer, *arguments, **named)
        layer.dense[0, 0] += 0.05

    monkeypatch.setattr(MaskedLinear, "merge", wrong)
    with pytest.raises(GateError, match=r"layers\.\d\..* with its adapter merged computes something else"):
        merged(model)
