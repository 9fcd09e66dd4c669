"""A head of its own under tied embeddings is cut and written, and the config says so; a table that is stored as a head only is one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.live.loading import load_model
from tests.pipeline.rebuild.cases import plan_for, rebuilt, same_width
from tests.tiny import tiny_model

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
Tensors = dict[str, torch.Tensor]


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    held = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.clone() for name, tensor in held.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("profile", [Profile.UNIFORM, Profile.DECILM, Profile.FREE])
def test_a_head_of_its_own_is_kept(tmp_path: Path, profile: Profile) -> None:
    source = changed(tiny_model("llama", tmp_path / "dense"), lambda held: held | {HEAD: held[TABLE].flip(0)})
    plan = plan_for(source, same_width)
    kept = tuple(range(0, 64, 2))
    plan = replace(plan, selection=replace(plan.selection, residual=kept))
    out = rebuilt(tmp_path, source, plan, profile)
    written = load_file(out / "model.safetensors")
    assert torch.equal(written[HEAD], load_file(source / "model.safetensors")[HEAD][:, list(kept)])
    assert Checkpoint(out).config["tie_word_embeddings"] is False
    model = load_model(out)
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_table_that_is_stored_as_a_head_is_written_as_a_table(tmp_path: Path) -> None:
    source = changed(
        tiny_model("llama", tmp_path / "dense"),
        lambda held: {HEAD if name == TABLE else name.removeprefix("model."): tensor for name, tensor in held.items()},
    )
    out = rebuilt(tmp_path, source, plan_for(source, same_width), Profile.UNIFORM)
    written = load_file(out / "model.safetensors")
    assert HEAD not in written
    assert torch.equal(written[TABLE], load_file(source / "model.safetensors")[HEAD])


def test_a_number_that_is_none_is_named_and_not_written(tmp_path: Path) -> None:
    source = changed(
        tiny_model("llama", tmp_path / "dense"), lambda held: held | {"model.norm.weight": held["model.norm.weight"] * float("nan")}
    )
    with pytest.raises(TrimlineError, match=r"model\.norm\.weight of .* holds NaN"):
        rebuilt(tmp_path, source, plan_for(source, same_width), Profile.UNIFORM)
