"""A step whose method, allocation and compensation measure nothing reads no text, and runs no block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import pipeline.prune.opening
import trimline
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.measure import measure, measured_part
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.sharding import why_whole
from pipeline.prune.stage import make_plan, prune
from pipeline.prune.steps import reads_text
from tests.tiny import tiny_model

OPTIONS = RunOptions(dtype="float32", threads=1)
FFN: dict[str, Any] = {"method": "magnitude", "budget": {"ffn": {"remove": 0.5}}, "round_to": 8}
SILENT = {
    "channels": (FFN,),
    "block after block": (FFN | {"sequential": True},),
    "pooled, in shots": ({"method": "magnitude", "pooled": {"remove": 0.3}, "round_to": 8, "shots": 2},),
    "a target": ({"method": "magnitude", "target": {"parameters": 0.8}, "round_to": 8},),
    "channels, then weights": (FFN, {"method": "magnitude", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"}),
}
READING = {
    "the method": FFN | {"method": "cfsp"},
    "the allocation": FFN | {"allocation": "cfsp"},
    "least squares": FFN | {"compensation": "least_squares"},
    "least squares, block after block": FFN | {"compensation": "least_squares", "sequential": True},
    "a bias": FFN | {"compensation": "bias"},
    "a method of its own": {"method": "laco", "budget": {"layer": {"keep": 3}}},
    "single weights": {"method": "gblm", "budget": {"weight": {"remove": 0.5}}, "options": {"score": "gradient"}},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("dense"))


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a tokenizer nor a block is to be had."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was read")

    monkeypatch.setattr(pipeline.prune.opening, "load_tokenizer", refuse)
    monkeypatch.setattr(LlamaDecoderLayer, "forward", refuse)


def sliced(*steps: dict[str, Any], **calibration: Any) -> PruneSlice:
    return PruneSlice.model_validate({"calibration": calibration, "steps": steps})


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("name", SILENT)
def test_no_text_is_read_and_no_block_runs(dense: Path, tmp_path: Path, name: str) -> None:
    recipe, nowhere = sliced(*SILENT[name]), tmp_path / "nowhere"
    assert not reads_text(recipe)
    assert why_whole(recipe).startswith("magnitude measures")
    known = None
    if measured_part(recipe, Checkpoint(dense).geometry) is not None:
        known = folder(tmp_path / "known")
        measure(dense, nowhere, recipe, OPTIONS, known, Events())
    prune(dense, nowhere, recipe, OPTIONS, folder(tmp_path / "plan"), Events())
    prune(dense, nowhere, recipe, OPTIONS, folder(tmp_path / "from measured"), Events(), known)
    plan = Plan.read(tmp_path / "plan")
    assert plan.selection == Plan.read(tmp_path / "from measured").selection
    assert {step.facts["tokens"] for step in plan.steps} == {0}


@pytest.mark.parametrize("name", SILENT)
def test_the_plan_is_the_same_whatever_the_text(dense: Path, tmp_path: Path, name: str) -> None:
    recipe = sliced(*SILENT[name])
    prune(dense, tmp_path, recipe, OPTIONS, folder(tmp_path / "plan"), Events())
    model = ShrinkingModel(load_model(dense, dtype=torch.float32), Checkpoint(dense))
    told = make_plan(model, torch.randint(4, 100, (4, 16)), recipe, Events())
    plan = Plan.read(tmp_path / "plan")
    assert plan.selection == told.selection
    assert {key: tensor.tolist() for key, tensor in plan.updates.items()} == {key: tensor.tolist() for key, tensor in told.updates.items()}


def test_a_measurement_without_text_is_the_same_for_every_calibration(dense: Path) -> None:
    geometry = Checkpoint(dense).geometry
    assert measured_part(sliced(FFN, windows=3), geometry) == measured_part(sliced(FFN, windows=4), geometry)
    reading = [measured_part(sliced(READING["the method"], windows=windows), geometry) for windows in (3, 4)]
    assert reading[0] != reading[1]


@pytest.mark.parametrize("name", READING)
def test_what_measures_anything_reads(name: str) -> None:
    assert reads_text(sliced(READING[name]))
    assert reads_text(sliced(FFN, READING[name]))


@pytest.mark.usefixtures("deaf")
def test_the_verb_does_not_even_look_for_the_text(dense: Path, tmp_path: Path) -> None:
    recipe = {"model": str(dense), "text": {"calibration": str(tmp_path / "missing.txt")}, "prune": {"steps": [FFN]}}
    assert {len(units) for units in trimline.prune(recipe, tmp_path / "plan", options=OPTIONS).selection.ffn} == {48}
