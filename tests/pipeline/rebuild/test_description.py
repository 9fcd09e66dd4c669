"""The check of a description: true ones pass, and of wrong ones it names the tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.architecture.families import FAMILIES, Axis, Family, Linear
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.rebuild.description import check_description, is_stock
from tests.pipeline.rebuild.cases import anything, rebuilt_tiny
from tests.tiny import TINY_TYPES, tiny_model, tiny_wrapped

Change = Callable[[Family], Family]


@pytest.mark.parametrize("name", TINY_TYPES)
def test_descriptions_are_true(tmp_path: Path, name: str) -> None:
    check_description(tiny_model(name, tmp_path))


def without(part: str) -> Change:
    def change(family: Family) -> Family:
        linears = tuple(one for one in family.linears if one.name != part)
        norms = tuple(one for one in family.norms if one.name != part)
        return replace(family, linears=linears, norms=norms, carried=tuple(one for one in family.carried if one.name != part))

    return change


def other(part: str, rows: tuple[Axis, ...], columns: Axis) -> Change:
    def change(family: Family) -> Family:
        return replace(family, linears=tuple(Linear(part, rows, columns, one.bias) if one.name == part else one for one in family.linears))

    return change


WRONG: list[tuple[str, Change, str]] = [
    ("starcoder2", lambda family: replace(family, norm_bias=False), r"lacks model\.norm\.bias"),
    ("phi", lambda family: replace(family, head_bias=False), r"lacks lm_head\.bias"),
    ("gemma2", without("post_feedforward_layernorm"), r"lacks model\.layers\.0\.post_feedforward_layernorm\.weight of shape \(64,\)"),
    ("apertus", without("mlp.act_fn.beta"), r"lacks model\.layers\.0\.mlp\.act_fn\.beta"),
    ("arcee", lambda family: replace(family, linears=FAMILIES["llama"].linears), r"has model\.layers\.\d\.mlp\.gate_proj\.weight, and the model has not"),
    ("glm", other("mlp.gate_up_proj", (Axis.FFN,), Axis.RESIDUAL), r"gate_up_proj\.weight the shape \(96, 64\), and it has \(192, 64\)"),
    ("olmo", other("self_attn.q_proj", (Axis.RESIDUAL,), Axis.QUERY), r"wrong about model\.layers\.3\.self_attn\.\w+\.weight"),
    ("phi3", other("self_attn.qkv_proj", (Axis.KV, Axis.QUERY, Axis.KV), Axis.RESIDUAL), r"wrong about model\.layers\.3\.self_attn\.qkv_proj\.weight: its rows"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "said"), WRONG, ids=[f"{name}-{said[:12]}" for name, _, said in WRONG])
def test_a_wrong_description_is_told_with_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Change, said: str
) -> None:
    folder = tiny_model(name, tmp_path)
    monkeypatch.setitem(FAMILIES, name, change(FAMILIES[name]))
    with pytest.raises(GateError, match=said):
        check_description(folder)


def test_only_folders_of_a_stock_class_are_spoken_of(tmp_path: Path) -> None:
    assert is_stock(Checkpoint(tiny_model("llama", tmp_path / "stock")))
    assert not is_stock(Checkpoint(tiny_wrapped("llava", tmp_path / "larger")))
    assert not is_stock(Checkpoint(rebuilt_tiny(tmp_path, "llama", anything, Profile.FREE)))
