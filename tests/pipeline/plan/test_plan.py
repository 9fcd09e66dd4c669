"""The plan on disk: what is written is what is read, index lists stay readable, and the same plan is the same bytes."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.architecture.families import FAMILIES, Axis, Linear, Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.artefacts.artefact import folder_digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan, Step, _numbers, _ranges
from pipeline.plan.selection import Selection
from tests.tiny import TINY_FAMILIES, tiny_model


def example() -> Plan:
    selection = Selection((0, 2), ((0, 1, 5), (), (7,)), ((0, 1), (1,), ()))
    steps = (Step("cfsp on ffn", {"method": "cfsp"}, {"ffn.0": (0, 1, 5), "ffn.1": ()}, {"tokens": 64, "importance": {"0": 0.25}}),)
    updates = {"b.weight": torch.arange(6.0).view(2, 3).T, "a.weight": torch.ones(2, dtype=torch.bfloat16)}
    return Plan(FAMILIES["llama"], selection, steps, updates, {"step0.ffn.0": torch.rand(4)})


def test_round_trip(tmp_path):
    plan = example()
    plan.write(tmp_path)
    read = Plan.read(tmp_path)
    assert (read.family, read.selection, read.steps) == (plan.family, plan.selection, plan.steps)
    for ours, theirs in ((plan.updates, read.updates), (plan.scores, read.scores)):
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_the_same_plan_is_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    plan = example()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plan.write(tmp_path / name)
    Plan(plan.family, plan.selection, plan.steps, dict(reversed(plan.updates.items())), plan.scores).write(tmp_path / "b")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


def test_a_person_can_read_it(tmp_path):
    example().write(tmp_path)
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["blocks"] == "0 2"
    assert document["ffn"] == ["0-1 5", "", "7"]
    assert document["steps"][0]["kept"] == {"ffn.0": "0-1 5", "ffn.1": ""}


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((0, 1), "0-1"), ((0, 1, 2, 5, 7, 8), "0-2 5 7-8"), ((9, 11), "9 11")]
)
def test_range_text(numbers, text):
    assert _ranges(numbers) == text
    assert _numbers(text) == numbers


@given(st.sets(st.integers(0, 5000)))
def test_range_text_round_trips(numbers):
    ordered = tuple(sorted(numbers))
    assert _numbers(_ranges(ordered)) == ordered


@pytest.mark.parametrize("text", ["5-3", "-3", "a", "0-99999999999", "1--2"])
def test_text_that_is_no_range(text):
    with pytest.raises(ValueError, match="range|invalid literal"):
        _numbers(text)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({}, "format None"),
        ({"format": 2}, "format 2"),
        ({"format": 1}, "no plan"),
        ({"format": 1, "blocks": 3, "ffn": [], "kv_groups": []}, "no plan"),
    ],
)
def test_documents_that_are_no_plan(tmp_path, document, match):
    example().write(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(TrimlineError, match=match):
        Plan.read(tmp_path)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_indices_cut_whole_heads(family, tmp_path):
    geometry = Checkpoint(tiny_model(family, tmp_path)).geometry
    everything = Selection.everything(geometry)
    assert everything.geometry(geometry) == geometry
    groups = geometry.blocks[0].kv_groups
    kept = Selection(everything.blocks, everything.ffn, (tuple(range(1, groups)),) * len(geometry.blocks))
    for linear in geometry.family.linears:
        rows, columns = kept.row_indices(linear, 0, geometry), kept.column_indices(linear, 0, geometry)
        expected = geometry.linear_shape(linear, BlockShape(geometry.blocks[0].ffn, groups - 1))
        assert (expected[0] if rows is None else len(rows), expected[1] if columns is None else len(columns)) == expected
        for indices in (rows, columns):
            if indices is not None and linear.sublayer is Sublayer.ATTENTION:
                assert int(indices.min()) in {geometry.head_dim, geometry.unit_width(Axis.QUERY)}


def test_fused_rows_are_cut_section_by_section():
    geometry = Geometry.from_config(
        {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 4}
        | {"num_hidden_layers": 1, "vocab_size": 8}
    )
    fused = Linear("qkv", (Axis.QUERY, Axis.KV, Axis.KV), Axis.RESIDUAL)
    rows = Selection((0,), ((0,),), ((1,),)).row_indices(fused, 0, geometry)
    assert rows is not None
    assert rows.tolist() == [4, 5, 6, 7, 10, 11, 14, 15]  # queries 0-7, keys 8-11, values 12-15
