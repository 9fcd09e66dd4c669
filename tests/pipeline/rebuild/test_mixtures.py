"""Whole experts of tiny mixtures go: every described type is cut, opened by its stock class, and gated against the dense model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.architecture.families import FAMILIES
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import demand_choice
from pipeline.architecture.profile import Profile
from pipeline.architecture.shapes import Routing
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json
from pipeline.rebuild.description import check_description
from tests.pipeline.rebuild.cases import Choice, fewer_blocks, fewer_experts, fewer_groups, plan_for, rebuilt, same_width
from tests.quick import some_types
from tests.tiny import MIXTURES, TINY_MIXTURES, tiny_model


@pytest.mark.parametrize("name", TINY_MIXTURES)
def test_the_description_is_that_of_the_stock_class(tmp_path: Path, name: str) -> None:
    check_description(tiny_model(name, tmp_path))


@pytest.mark.parametrize("name", some_types(TINY_MIXTURES))
def test_two_of_eight_experts_go_with_all_else_that_can(tmp_path: Path, name: str) -> None:
    def choose(choice: Choice) -> None:
        fewer_experts(choice)
        fewer_blocks(choice)
        if not FAMILIES[name].norms_over_heads:
            fewer_groups(choice)
        if not FAMILIES[name].fixed_ffn:
            same_width(choice)

    dense = tiny_model(name, tmp_path / "dense")
    out = rebuilt(tmp_path, dense, plan_for(dense, choose), Profile.UNIFORM)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, local_files_only=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == f"{FAMILIES[name].class_prefix}ForCausalLM"
    assert {block.experts for block in Checkpoint(out).geometry.blocks} == {
        6,
        *([0] if Checkpoint(out).geometry.blocks[0].experts == 0 else []),
    }
    assert names_without_numbers(out) == names_without_numbers(dense)


def names_without_numbers(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {".".join("#" if part.isdigit() else part for part in name.split(".")) for name in file.keys()}  # noqa: SIM118


TWO_KEYS = [name for name in TINY_MIXTURES if (found := FAMILIES[name].mixture) and len(found.count_keys) > 1]


@pytest.mark.parametrize("name", TWO_KEYS)
def test_what_the_class_takes_where_two_keys_disagree_is_what_counts_here(name: str) -> None:
    mixture = FAMILIES[name].mixture
    assert mixture is not None
    assert len(mixture.count_keys) == 2
    whole = AutoConfig.for_model(name, **MIXTURES[name]).to_dict()
    for keys in (mixture.count_keys, mixture.count_keys[::-1]):  # whichever is stated first in the file
        config = {key: value for key, value in whole.items() if key not in keys} | {
            key: 8 if key == mixture.count_keys[0] else 6 for key in keys
        }
        taken = AutoConfig.for_model(**config)
        assert {getattr(taken, key) for key in mixture.count_keys} == {8}
        assert Geometry.from_config(config).blocks[-1].experts == 8


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "minimax_m2"])
def test_of_two_keys_that_count_experts_the_one_that_transformers_takes_counts(tmp_path: Path, name: str) -> None:
    """Each alone will do, as folders of the hub have it; beside the first, transformers passes over the other without a word."""
    mixture = FAMILIES[name].mixture
    assert mixture is not None
    first, other = mixture.count_keys
    dense = tiny_model(name, tmp_path / "dense", num_hidden_layers=2)
    config = {key: value for key, value in read_json(dense / "config.json").items() if key not in mixture.count_keys}
    for stated in ({first: 8}, {other: 8}, {first: 8, other: 6}):
        write_json(dense / "config.json", config | stated)
        assert AutoConfig.from_pretrained(dense, local_files_only=True).num_experts == 8
        assert {block.experts for block in Checkpoint(dense).geometry.blocks} == {8}
        folder = tmp_path / "-".join(stated)
        folder.mkdir()
        written = read_json(rebuilt(folder, dense, plan_for(dense, fewer_experts), Profile.UNIFORM) / "config.json")
        counted = first if first in stated else other
        assert {key: written[key] for key in mixture.count_keys if key in written} == {counted: 6}


def test_a_folder_of_stacked_experts_is_read_and_written_as_it_is(tmp_path: Path) -> None:
    """transformers saves a model under the names that it was opened with."""
    dense = tiny_model("qwen3_moe", tmp_path / "dense", num_hidden_layers=2)
    tensors = dict(Checkpoint(dense).tensors())
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    out = rebuilt(tmp_path, dense, plan_for(dense, fewer_experts), Profile.UNIFORM)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)
        assert file.get_slice("model.layers.0.mlp.experts.gate_up_proj").get_shape() == [6, 64, 64]


def test_a_folder_without_one_expert_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    dense = tiny_model("mixtral", tmp_path / "dense", num_hidden_layers=2)
    tensors = load_file(dense / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.5.w3.weight"]
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrimlineError, match=r"and no model\.layers\.1\.block_sparse_moe\.experts\.5\.w3\.weight"):
        Checkpoint(dense)


def test_a_choice_in_groups_needs_as_many_of_each(tmp_path: Path) -> None:
    geometry = replace(Checkpoint(tiny_model("qwen3_moe", tmp_path)).geometry, routing=Routing(chosen=4, groups=4, chosen_groups=2))
    demand_choice(geometry, 8)
    for experts, message in ((6, "same number from each of the 4 groups"), (4, "Keep at least 8")):
        with pytest.raises(TrimlineError, match=message):
            demand_choice(geometry, experts)


def test_a_block_within_the_depth_is_no_head_that_predicts_further_tokens(tmp_path: Path) -> None:
    """GLM-4.5 numbers that head as one block more; of a deeper model this number is a block's."""
    sizes = {"num_hidden_layers": 47, "hidden_size": 16, "intermediate_size": 8, "moe_intermediate_size": 8, "head_dim": 4}
    deep = Checkpoint(tiny_model("glm4_moe", tmp_path, **sizes))
    assert (len(deep.geometry.blocks), deep.passed_over) == (47, ())
