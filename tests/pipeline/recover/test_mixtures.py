"""Mixtures that lost experts, trained: the loss falls, routers stay, adapters of experts merge exactly, the folder keeps its form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners import lora

from pipeline.architecture.families import FAMILIES
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.live.loading import load_model
from pipeline.recover.adapters import adapted, merged
from pipeline.recover.recipe import LoRASlice, RecoverSlice
from pipeline.recover.stage import check_trained
from pipeline.recover.zeros import projection_weights
from tests.pipeline.rebuild.cases import fewer_experts, rebuilt_tiny
from tests.pipeline.recover.test_adapters import TOKENS, layers, randomised
from tests.pipeline.recover.test_stage import Case, Killed, digests
from tests.quick import some_types
from tests.tiny import TINY_MIXTURES, tiny_model

QUICK: dict[str, Any] = {
    "steps": 8,
    "batch": 4,
    "windows": 8,
    "window": 24,
    "learning_rate": 3e-3,
    "loss": "text",
    "held_out": 2,
    "patience": 99,
}
LORA = QUICK | {"lora": {"rank": 2}}
FULL = QUICK | {"kind": "full"}


def routing(name: str, family: str) -> bool:
    mixture = FAMILIES[family].mixture
    assert mixture is not None
    return f".{mixture.router}." in name or name.endswith(mixture.correction or "-")


def made(tmp: Path, family: str) -> Case:
    return Case.made(tmp, tmp / "dense", rebuilt_tiny(tmp, family, fewer_experts, Profile.UNIFORM))


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("qwen3_moe", LORA),
        ("qwen3_moe", FULL),
        ("glm4_moe", FULL | {"loss": "distillation", "learning_rate": 3e-4}),  # a correction, a dense block, a shared expert
        ("gpt_oss", LORA | {"loss": "distillation", "learning_rate": 1e-3}),  # transposed, with biases
    ],
)
def test_the_held_out_loss_falls_and_routers_stay(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    case = made(tmp_path, family)
    out = case.recover("recovered", values)
    losses = [point["loss"] for point in read_json(out / "recover.json")["held out"]]
    assert min(losses) < losses[0]
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    assert after.locations == before.locations
    moved = {name for name, tensor in before.tensors() if not torch.equal(tensor, after.tensor(name))}
    assert [name for name in moved if routing(name, family)] == []
    mixture = FAMILIES[family].mixture
    assert mixture is not None
    assert sum(any(name.endswith(weight) for weight in mixture.weights) for name in moved) == 2 * sum(
        bool(block.experts) for block in before.geometry.blocks
    )
    gate = read_json(out / "gate.json")
    assert gate["attempts"][-1]["reopened"]["passed"]
    if "lora" in values:
        assert gate["merged"]["passed"]


def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """A shared expert and a dense block's FFN beside stacked experts: names that peft reads in ways of its own when it loads adapters."""
    case, values = made(tmp_path, "glm4_moe"), LORA | {"steps": 4, "save_every": 2}

    def kill(event: Event) -> None:
        if event.text.startswith("training") and event.done == 3:
            raise Killed

    undisturbed = digests(case.recover("undisturbed", values))
    with pytest.raises(Killed):
        case.recover("killed", values, events=Events(kill))
    heard: list[Event] = []
    assert digests(case.recover("killed", values, events=Events(heard.append))) == undisturbed
    assert [event.done for event in heard if event.text.startswith("training")] == [0, 2, 3, 4]


def test_routers_train_where_the_recipe_says_so(tmp_path: Path) -> None:
    case = made(tmp_path, "qwen3_moe")
    out = case.recover("recovered", FULL | {"routers": "trained"})
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    still = [name for name, old in before.tensors() if routing(name, "qwen3_moe") and torch.equal(old, after.tensor(name))]
    assert still == []


@pytest.mark.parametrize("family", some_types(TINY_MIXTURES))
def test_every_expert_gets_an_adapter_of_the_rank_that_was_asked_for(tmp_path: Path, family: str) -> None:
    geometry = Checkpoint(tiny_model(family, tmp_path)).geometry
    ranks = [1 + number for number in range(len(geometry.blocks))]
    model = randomised(adapted(load_model(tmp_path, dtype=torch.float32), geometry, LoRASlice(rank=3, alpha=6.0), ranks))
    assert sorted(f"{name}.weight" for name in layers(model)) == sorted(projection_weights(geometry))
    wrappers = [module for module in model.modules() if isinstance(module, lora.ParamWrapper)]
    expected_ranks = sorted(2 * [rank for rank, block in zip(ranks, geometry.blocks, strict=True) if block.experts])
    assert sorted(len(wrapper.lora_A["default"].weight) / 8 for wrapper in wrappers) == expected_ranks
    assert {layer.scaling["default"] for layer in (*wrappers, *layers(model).values())} == {2.0}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert not any(routing(name.replace(".base_layer", ""), family) for name in trained)
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
        plain, record = merged(model)
        assert record["passed"]
        torch.testing.assert_close(plain(TOKENS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in load_model(tmp_path).named_parameters()}


def test_experts_that_merge_wrongly_fail_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Checkpoint(tiny_model("qwen3_moe", tmp_path, num_hidden_layers=2)).geometry
    model = randomised(adapted(load_model(tmp_path, dtype=torch.float32), geometry, LoRASlice(rank=3), [3, 3]))
    right = lora.ParamWrapper.merge

    def turned(self: lora.ParamWrapper, *arguments: Any, **named: Any) -> None:
        right(self, *arguments, **named)
        self.get_param().data = self.get_param().data.roll(1, 0)  # the experts in another order

    monkeypatch.setattr(lora.ParamWrapper, "merge", turned)
    with pytest.raises(GateError, match="experts with its adapter merged computes something else"):
        merged(model)


def test_attention_alone_leaves_experts_as_they_are(tmp_path: Path) -> None:
    case = made(tmp_path, "mixtral")
    out = case.recover("recovered", QUICK | {"lora": {"rank": 2, "targets": ["attention"], "dropout": 0.1}})
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    moved = {name for name, old in before.tensors() if not torch.equal(old, after.tensor(name))}
    assert moved
    assert all(".self_attn." in name for name in moved)


def test_a_family_whose_ffn_is_experts_alone_takes_adapters_there_alone(tmp_path: Path) -> None:
    case = made(tmp_path, "mixtral")
    out = case.recover("recovered", QUICK | {"lora": {"rank": 2, "targets": ["ffn"]}})
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    moved = {name for name, old in before.tensors() if not torch.equal(old, after.tensor(name))}
    assert moved
    assert all(".mlp.experts." in name for name in moved)


@pytest.mark.parametrize(
    ("values", "message"),
    [(LORA | {"lora": {"dropout": 0.1}}, "have no dropout"), (FULL | {"sharded": True}, "was not tried")],
)
def test_refused_before_anything_is_measured(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimlineError, match=message):
        check_trained(FAMILIES["qwen3_moe"], RecoverSlice(**values))


def test_a_dense_model_has_no_routers_to_train() -> None:
    with pytest.raises(TrimlineError, match="llama has no routers to train"):
        check_trained(FAMILIES["llama"], RecoverSlice(kind="full", routers="trained"))
