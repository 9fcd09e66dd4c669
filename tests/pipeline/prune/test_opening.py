"""What every measuring stage refuses before it measures: numbers that are none, and a folder that could mean another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.prune.opening import opened
from pipeline.sources.recipe import CalibrationWindows
from tests.tiny import tiny_model

WINDOWS = CalibrationWindows(token_ids=((5, 6, 7, 8), (9, 10, 11, 12)))
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model("llama", tmp_path / "model", num_hidden_layers=2)


def set_number(folder: Path, value: float) -> None:
    held = load_file(folder / "model.safetensors")
    held[UP][3, 5] = value
    save_file(held, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf")])
def test_a_weight_that_is_no_number_is_named_whole_and_block_by_block(model: Path, value: float, kind: str) -> None:
    set_number(model, value)
    with pytest.raises(TrimlineError, match=f"{UP} .* holds {kind}"):
        opened(model, model, WINDOWS, RunOptions(threads=1))
    paged, _ = opened(model, model, WINDOWS, RunOptions(threads=1, memory=1))
    assert paged.paging is not None
    paged.paging.enter(0)
    with pytest.raises(TrimlineError, match=f"{UP} .* holds {kind}"):
        paged.paging.enter(1)


def test_numbers_beyond_the_type_that_measures(model: Path) -> None:
    set_number(model, 1e6)
    with pytest.raises(TrimlineError, match=f"{UP} .* beyond float16"):
        opened(model, model, WINDOWS, RunOptions(threads=1, dtype="float16"))


def test_a_folder_that_could_mean_another_model_is_refused(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, model / "adapter_model.safetensors")
    with pytest.raises(TrimlineError, match="adapter beside its weights .* merge"):
        opened(model, model, WINDOWS, RunOptions(threads=1))
