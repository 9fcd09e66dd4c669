"""Every method over blocks that are hardly blocks: a plan that keeps what was asked for, or a sentence that names what is wrong.

Methods come from the registry, so a new one is tried too.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.architecture.spaces import Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.methods import METHODS
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from tests.tiny import tiny_model

BLOCKS, CHANNELS, GROUPS, HIDDEN = 3, 8, 2, 16
SIZES: dict[str, Any] = {
    "num_hidden_layers": BLOCKS, "intermediate_size": CHANNELS, "num_key_value_heads": GROUPS, "hidden_size": HIDDEN,
    "num_attention_heads": 4, "head_dim": 4, "tie_word_embeddings": False,
}  # fmt: skip
WINDOWS = torch.randint(4, 100, (3, 8), generator=torch.Generator().manual_seed(3))
ASKED: dict[Space, dict[str, Any]] = {
    Space.FFN: {"remove": 0.5}, Space.KV_GROUP: {"remove": 0.5}, Space.WEIGHT: {"remove": 0.5},
    Space.RESIDUAL: {"keep": HIDDEN // 2}, Space.LAYER: {"keep": BLOCKS - 1},
}  # fmt: skip
Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1."
PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
ALTERED = {  # options without which a method's other arithmetic would not be run
    "cfsp": {"score": "normalised"}, "flap": {"metric": "IFV"}, "llm_surgeon": {"cost": "published_sum"}, "magnitude": {"score": "product"},
    "block_influence": {"measure": "cosine"}, "wanda": {"select": "alpha"}, "gblm": {"score": "gradient"}, "laco": {"merge": "equation"},
}  # fmt: skip


def steps() -> dict[str, dict[str, Any]]:
    """For every method a step in each of its spaces; where it takes a pooled budget alone, that; and what changes the arithmetic."""
    found: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        for space in sorted(method.spaces - {Space.EXPERT}):  # tests/pipeline/prune/methods/test_experts.py has dead mixtures
            step = {"method": name, "budget": {space: ASKED[space]}, "round_to": 1}
            if name == "laco":
                step["options"] = {"layers": 2, "interval": 1, "lowest": 0}
            if name == "bypass":
                step["options"] = {"steps": 4}
            if not possible(step):
                step = {"method": name, "pooled": {"spaces": [space], "remove": 0.1}, "round_to": 1}
            found[f"{name} {space}"] = step
            if possible(other := step | {"options": step.get("options", {}) | ALTERED.get(name, {})}) and name in ALTERED:
                found[f"{name} {space}, altered"] = other
    units = {"method": "cfsp_extended", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.5}}, "round_to": 1}
    for kind in ("least_squares", "bias"):
        found[f"{kind}"] = units | {"compensation": kind, "allocation": "uniform"}
    found["flap pooled"] = {"method": "flap", "pooled": {"remove": 0.3}, "round_to": 1}
    rows = {"structures": "published"}
    found["llm_surgeon rows"] = {"method": "llm_surgeon", "budget": {"weight": {"remove": 0.5}}, "options": rows}
    return found


def possible(step: dict[str, Any]) -> bool:
    try:
        resolve_steps(PruneSlice.model_validate({"steps": [step]}))
    except TrimlineError:
        return False
    return True


STEPS = steps()


def idle_blocks(held: Tensors) -> None:
    """One block has a single channel and a single KV group that say anything, one writes nothing (as LLaMA-Pro adds them), one is all zeros."""
    held["model.layers.0.mlp.up_proj.weight"][1:] = 0
    held["model.layers.0.self_attn.v_proj.weight"][4:] = 0
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        held[f"{LAYER}{name}.weight"].zero_()
    for name in PROJECTIONS:
        held[f"model.layers.2.{name}.weight"].zero_()


def no_slopes(held: Tensors) -> None:
    """Every token is as likely as any other, whatever the blocks do."""
    held["lm_head.weight"].zero_()


def no_input(held: Tensors) -> None:
    held["model.embed_tokens.weight"].zero_()


def constant(held: Tensors) -> None:
    """Every unit is like every other."""
    for name, tensor in held.items():
        if tensor.dim() == 2 and "layers" in name:
            tensor.fill_(0.1)


def massive(held: Tensors) -> None:
    """One channel's product is beyond fp16, and its reader brings it back to nothing."""
    held[f"{LAYER}mlp.gate_proj.weight"][3] *= 3000
    held[f"{LAYER}mlp.up_proj.weight"][3] *= 3000
    held[f"{LAYER}mlp.down_proj.weight"][:, 3] *= 1e-6


FINITE = (idle_blocks, no_slopes, no_input, constant)
BROKEN = {
    f"{LAYER}mlp.down_proj.weight": math.nan,
    "model.layers.2.self_attn.q_proj.weight": math.inf,
    "model.embed_tokens.weight": -math.inf,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Tensors], None]], tuple[Checkpoint, torch.nn.Module]]:
    """A tiny model after a change, each made once."""
    dense = tiny_model("llama", tmp_path_factory.mktemp("dense"), **SIZES)
    known: dict[str, tuple[Checkpoint, torch.nn.Module]] = {}

    def make(name: str, change: Callable[[Tensors], None]) -> tuple[Checkpoint, torch.nn.Module]:
        if name not in known:
            folder: Path = tmp_path_factory.mktemp("changed")
            held = load_file(dense / "model.safetensors")
            change(held)
            (folder / "config.json").write_bytes((dense / "config.json").read_bytes())
            save_file(held, folder / "model.safetensors", {"format": "pt"})
            known[name] = Checkpoint(folder), load_model(folder, dtype=torch.float32)
        return known[name]

    return make


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, torch.nn.Module]:
    folder = tiny_model("llama", tmp_path_factory.mktemp("single"), **SIZES | {"intermediate_size": 1, "num_key_value_heads": 1})
    return Checkpoint(folder), load_model(folder, dtype=torch.float32)


def planned(checkpoint: Checkpoint, live: torch.nn.Module, *taken: dict[str, Any]) -> Plan:
    model = ShrinkingModel(deepcopy(live), checkpoint)
    return make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": taken}), Events())


def demand_kept(plan: Plan, step: dict[str, Any], channels: int = CHANNELS, groups: int = GROUPS) -> None:
    """As many units as the budget says, to within what rounding may take; nothing in the plan is NaN or Inf."""
    budget, selection = step.get("budget", {}), plan.selection
    if "ffn" in budget:
        assert abs(sum(map(len, selection.ffn)) - BLOCKS * channels / 2) <= BLOCKS / 2
    if "kv_group" in budget:
        assert abs(sum(map(len, selection.kv_groups)) - BLOCKS * groups / 2) <= 1
    if "layer" in budget:
        assert len(selection.blocks) == BLOCKS - 1
    if "residual" in budget:
        assert selection.residual is not None
        assert len(selection.residual) == HIDDEN // 2
    if "weight" in budget:
        assert plan.steps[-1].facts["zero fraction"] >= 0.45
    if "pooled" in step:
        assert sum(map(len, selection.ffn)) + sum(map(len, selection.kv_groups)) < BLOCKS * (channels + groups)
        assert all(selection.ffn)
        assert all(selection.kv_groups)
    assert all(torch.isfinite(tensor).all() for tensor in (*plan.updates.values(), *plan.scores.values()))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("change", FINITE, ids=lambda change: change.__name__)
def test_blocks_that_do_nothing_are_pruned_like_others(made: Any, change: Callable[[Tensors], None], name: str) -> None:
    demand_kept(planned(*made(change.__name__, change), STEPS[name]), STEPS[name])


@pytest.mark.parametrize("name", STEPS)
def test_a_single_unit_is_kept_or_said_to_be_too_few(single: Any, name: str) -> None:
    """Every block has one channel and one KV group, of which no half can go."""
    step = STEPS[name]
    try:
        plan = planned(*single, step)
    except TrimlineError as error:
        said = str(error)
    else:
        assert all(map(len, plan.selection.ffn))
        assert all(map(len, plan.selection.kv_groups))
        return
    assert {"ffn", "kv_group"} & set(step.get("budget", {})) or "pooled" in step
    assert re.search(r"not possible|less than one tile", said)


NOTHING_OF = {"kv_group": {"kv_group": {"keep": [0] * BLOCKS}}, "ffn": {"ffn": {"keep": [0] * BLOCKS}}}
ON_NOTHING: dict[str, dict[str, Any]] = {
    "uniform": {"method": "cfsp_extended", "allocation": "uniform"},
    "cfsp": {"method": "cfsp_extended", "allocation": "cfsp"},
    "global": {"method": "flap"},
    "of parameters": {"method": "taylor", "budget": {"remove": 0.02, "of": "parameters"}},
    "pooled": {"method": "gblm", "pooled": {"remove": 0.2}},
    "own rule": {"method": "trimline", "pooled": {"remove": 0.2}},
    "target": {"method": "wanda_sp", "target": {"parameters": 0.97}},
    "optimal": {"method": "llm_surgeon", "target": {"parameters": 0.97}, "allocation": "optimal"},
    "target of its own": {"method": "trimline", "target": {"parameters": 0.97}},
}


@pytest.mark.parametrize("name", ON_NOTHING)
@pytest.mark.parametrize("space", NOTHING_OF)
def test_a_space_of_which_nothing_is_left_is_named(made: Any, space: str, name: str) -> None:
    """Before anything is measured. A budget or target that other spaces share is met in those."""
    first = {"method": "magnitude", "budget": NOTHING_OF[space], "round_to": 1}
    step = ON_NOTHING[name]
    kind = next((kind for kind in ("pooled", "target") if kind in step), "budget")
    stated = {space: step.get("budget", {"remove": 0.5})} if kind == "budget" else step[kind] | {"spaces": [space]}
    with pytest.raises(TrimlineError, match=f"Nothing is left of {space} when {step['method']}"):
        planned(*made("dense", lambda held: None), first, step | {kind: stated, "round_to": 1})
    if kind != "budget":
        shared = {"parameters": 5000 if space == "kv_group" else 6000} if kind == "target" else step[kind]
        plan = planned(*made("dense", lambda held: None), first, step | {kind: shared, "round_to": 1})
        assert sum(map(len, plan.selection.ffn)) + sum(map(len, plan.selection.kv_groups)) < BLOCKS * (
            CHANNELS if space != "ffn" else GROUPS
        )


def test_weights_of_which_nothing_is_left_are_named(made: Any) -> None:
    first = {"method": "magnitude", "budget": NOTHING_OF["ffn"] | NOTHING_OF["kv_group"], "round_to": 1}
    for method in ("magnitude", "llm_surgeon"):
        with pytest.raises(TrimlineError, match=f"Nothing is left of weight when {method}"):
            planned(*made("dense", lambda held: None), first, {"method": method, "budget": {"weight": {"remove": 0.5}}})


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("tensor", BROKEN)
def test_a_weight_that_is_no_number_is_named(made: Any, tensor: str, name: str) -> None:
    """Or was never read: then nothing of it is in the plan."""

    def spoil(held: Tensors) -> None:
        held[tensor][3 if "embed" not in tensor else int(WINDOWS[0, 0])] = BROKEN[tensor]

    try:
        plan = planned(*made(tensor, spoil), STEPS[name])
    except TrimlineError as error:
        said = str(error)
    else:
        assert STEPS[name]["method"] == "magnitude"
        demand_kept(plan, STEPS[name])
        return
    assert re.search(rf"[Tt]he tensor {tensor} .*holds {'NaN' if math.isnan(BROKEN[tensor]) else 'Inf'}", said)
    assert "--dtype" not in said


@pytest.mark.parametrize("name", STEPS)
def test_activations_that_overflow_are_named_with_the_remedy(made: Any, name: str) -> None:
    checkpoint, live = made("massive", massive)
    if STEPS[name]["method"] == "magnitude":
        demand_kept(planned(checkpoint, deepcopy(live).half(), STEPS[name]), STEPS[name])
        return
    with pytest.raises(TrimlineError, match=r"(of block 1|last hidden states) .*overflow in float16.*--dtype float32") as caught:
        planned(checkpoint, deepcopy(live).half(), STEPS[name])
    assert "tensor" not in str(caught.value)


@pytest.mark.parametrize("name", STEPS)
def test_a_text_that_says_one_thing_only_is_enough(made: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every token is the same, so that nothing varies between them."""
    monkeypatch.setattr(sys.modules[__name__], "WINDOWS", torch.full_like(WINDOWS, 7))
    demand_kept(planned(*made("dense", lambda held: None), STEPS[name]), STEPS[name])


def test_an_update_that_is_not_finite_is_never_written(made: Any) -> None:
    checkpoint, live = made("dense", lambda held: None)
    model, name = ShrinkingModel(deepcopy(live), checkpoint), f"{LAYER}mlp.down_proj.weight"
    for value in (math.nan, math.inf):
        with pytest.raises(TrimlineError, match=f"new values of {name} are not finite in float32"):
            model.replace(name, torch.full((HIDDEN, CHANNELS), value))
        with pytest.raises(TrimlineError, match=r"down_proj\.bias are not finite"):
            model.add_bias(1, "mlp.down_proj", torch.full((HIDDEN,), value))
    assert not model.updates()
    assert torch.equal(model.model.get_parameter(name), live.get_parameter(name))


def test_an_update_must_be_finite_in_the_dtype_that_it_is_stored_in(made: Any) -> None:
    def half(held: Tensors) -> None:
        held |= {key: tensor.half() for key, tensor in held.items()}

    checkpoint, live = made("half", half)
    with pytest.raises(TrimlineError, match="not finite in float16, which the checkpoint is stored in"):
        ShrinkingModel(deepcopy(live), checkpoint).replace(f"{LAYER}mlp.down_proj.weight", torch.full((HIDDEN, CHANNELS), 1e5))


def test_scores_beyond_any_number_are_said_and_not_hidden(made: Any) -> None:
    """Weights whose squares are beyond fp32: FLAP's metric is infinite, and its z-scores no numbers."""

    def huge(held: Tensors) -> None:
        held[f"{LAYER}mlp.down_proj.weight"] *= 1e30
        held[f"{LAYER}mlp.up_proj.weight"] *= 1e-30

    for step in ({"method": "flap"}, {"method": "magnitude", "options": {"score": "product"}}):
        with pytest.raises(TrimlineError, match=f"The scores of block 1 by {step['method']} are not finite"):
            planned(*made("huge", huge), step | {"budget": {"ffn": {"remove": 0.5}}, "round_to": 1})


def test_a_fraction_below_one_weight_takes_none(made: Any) -> None:
    plan = planned(*made("dense", lambda held: None), {"method": "llm_surgeon", "budget": {"weight": {"remove": 1e-6}}})
    assert (plan.steps[-1].facts["zero fraction"], plan.steps[-1].facts["threshold"]) == (0.0, None)
