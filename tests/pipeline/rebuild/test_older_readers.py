"""The rebuilt config names its rotary embedding by the keys of transformers 4 beside those of 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.files import write_json
from pipeline.evaluate.settings import demand_same_config
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.config import smaller_config
from pipeline.rebuild.settings import changes_of
from tests.tiny import tiny_model

PLAIN = {"rope_type": "default", "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "a base": ("llama", PLAIN, {"rope_theta": 5e5}),
    "scaling": ("llama", LINEAR, {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "a part of each head": ("phi", PLAIN | {"partial_rotary_factor": 0.5}, {"rope_theta": 5e5, "partial_rotary_factor": 0.5}),
}


def rebuilt_config(folder: Path, name: str, rotary: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    checkpoint = Checkpoint(tiny_model(name, folder, rope_parameters=rotary))
    plan = Plan(checkpoint.geometry.family, Selection.everything(checkpoint.geometry), ())
    return dict(checkpoint.config), smaller_config(checkpoint.config, plan, Profile.UNIFORM)


@pytest.mark.parametrize("case", CASES)
def test_both_generations_of_keys_say_the_same(tmp_path: Path, case: str) -> None:
    name, rotary, older = CASES[case]
    dense, found = rebuilt_config(tmp_path / "dense", name, rotary)
    assert not older.keys() & {key for key in dense if dense[key] is not None}
    assert {key: found[key] for key in older} == older
    assert found["rope_scaling"] == older.get("rope_scaling")  # said even where there is none: some classes of transformers 4 have one
    (tmp_path / "again").mkdir()
    write_json(tmp_path / "again" / "config.json", found)
    reopened = AutoConfig.from_pretrained(tmp_path / "again")
    assert reopened.rope_parameters == AutoConfig.from_pretrained(tmp_path / "dense").rope_parameters


def test_the_gate_refuses_another_base_or_scaling(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_model("llama", tmp_path / "dense", rope_parameters=LINEAR))
    plan = Plan(checkpoint.geometry.family, Selection.everything(checkpoint.geometry), ())
    right = smaller_config(checkpoint.config, plan, Profile.UNIFORM)
    (out := tmp_path / "out").mkdir()
    for change in ({}, {"rope_theta": 1e4}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}):
        write_json(out / "config.json", right | change)
        changes = changes_of(checkpoint.config, right, plan)
        if not change:
            assert demand_same_config(checkpoint.folder, out, changes) > 10
            continue
        with pytest.raises(GateError, match=f"{next(iter(change))} is .* where it must be"):
            demand_same_config(checkpoint.folder, out, changes)


def test_what_the_dense_config_says_stays_and_kinds_of_block_have_no_older_form(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_model("llama", tmp_path / "llama", rope_parameters=PLAIN))
    plan = Plan(checkpoint.geometry.family, Selection.everything(checkpoint.geometry), ())
    assert smaller_config(checkpoint.config | {"rope_theta": 7.0}, plan, Profile.UNIFORM)["rope_theta"] == 7.0
    scaled = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}  # which transformers 5 takes in the place of rope_parameters
    found = smaller_config(checkpoint.config | scaled, plan, Profile.UNIFORM)
    assert (found["rope_scaling"], found.get("rope_theta")) == (scaled["rope_scaling"], None)
    long = PLAIN | {"rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    assert "rope_scaling" not in smaller_config(checkpoint.config | {"rope_parameters": long}, plan, Profile.UNIFORM)
    kinds = Checkpoint(tiny_model("gemma3_text", tmp_path / "gemma"))
    assert all(isinstance(one, dict) for one in kinds.config["rope_parameters"].values())
    plan = Plan(kinds.geometry.family, Selection.everything(kinds.geometry), ())
    assert "rope_theta" not in smaller_config(kinds.config, plan, Profile.UNIFORM)
