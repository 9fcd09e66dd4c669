"""Whole experts of tiny mixtures go: every described type is cut, opened by its stock class, and gated against the dense model."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from pipeline.architecture.families import FAMILIES
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.rebuild.description import check_description
from tests.pipeline.rebuild.cases import Choice, fewer_blocks, fewer_experts, fewer_groups, plan_for, rebuilt, same_width
from tests.tiny import TINY_MIXTURES, tiny_model


@pytest.mark.parametrize("name", TINY_MIXTURES)
def test_the_description_is_that_of_the_stock_class(tmp_path: Path, name: str) -> None:
    check_description(tiny_model(name, tmp_path))


@pytest.mark.parametrize("name", TINY_MIXTURES)
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
