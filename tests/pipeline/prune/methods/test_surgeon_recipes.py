"""The recipes of LLM Surgeon, whole schedule, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from pipeline.sources.recipe import TextSource
from pipeline.sources.text import load_text
from pipeline.sources.windows import draw_windows
from tests.pipeline.rebuild.cases import rebuilt
from tests.tiny import tiny_model
from trimline.recipe import read_recipe

RECIPES = Path(__file__).parents[4] / "recipes"
WINDOWS = torch.randint(4, 100, (4, 24), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "shots", "remove"), [("llm-surgeon", 8, 0.1), ("llm-surgeon-full-schedule", 40, 0.5)])
def test_the_schedule_is_run_to_its_end(tmp_path: Path, name: str, shots: int, remove: float) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    resolve_steps(recipe.prune)
    (step,) = recipe.prune.steps
    assert (step.shots, step.pooled and step.pooled.remove) == (shots, remove)
    source = tiny_model("llama", tmp_path / "dense", num_hidden_layers=3)
    narrow = recipe.prune.model_copy(update={"steps": (step.model_copy(update={"round_to": 8}),)})  # the model is 96 channels wide
    model = ShrinkingModel(load_model(source, dtype=torch.float32), Checkpoint(source))
    plan = make_plan(model, WINDOWS, narrow, Events())
    assert len(plan.steps) == shots
    left = model.current.decoder_parameters() / model.geometry.decoder_parameters()
    assert left == pytest.approx(1 - remove, abs=0.02)
    out = rebuilt(tmp_path, source, plan, recipe.rebuild.profile)
    assert json.loads((out / "gate.json").read_text())["passed"]
    assert Checkpoint(out).geometry.decoder_parameters() == model.current.decoder_parameters()


@pytest.mark.parametrize(("name", "shots"), [("llm-surgeon-as-published", 40), ("llm-surgeon-2-4", 5)])
def test_schedules_of_zeros_are_run_to_their_end(tmp_path: Path, name: str, shots: int) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    resolve_steps(recipe.prune)
    source = tiny_model("llama", tmp_path / "dense", num_hidden_layers=3)
    model = ShrinkingModel(load_model(source, dtype=torch.float32), Checkpoint(source))
    plan = make_plan(model, WINDOWS, recipe.prune, Events())
    assert [step.facts["shot"] for step in plan.steps] == [f"{number} of {shots}" for number in range(1, shots + 1)]
    assert plan.steps[-1].facts["zero fraction"] == pytest.approx(0.5, abs=0.03)  # whole rows and columns
    out = rebuilt(tmp_path, source, plan, recipe.rebuild.profile)
    assert json.loads((out / "gate.json").read_text())["passed"]
    weights = [Checkpoint(out).tensor(name) for name in plan.sparse]
    if name == "llm-surgeon-2-4":
        assert {two_four_fraction(weight) for weight in weights} == {1.0}
    else:
        assert any((weight == 0).all(1).any() for weight in weights)
        assert any((weight == 0).all(0).any() for weight in weights)


@pytest.mark.parametrize("name", ["llm-surgeon", "llm-surgeon-full-schedule", "llm-surgeon-as-published", "flap"])
def test_their_windows_can_be_drawn_from_the_built_in_text(tmp_path: Path, name: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    tokenizer = load_tokenizer(tiny_model("llama", tmp_path))
    drawn = draw_windows(tokenizer, load_text(TextSource(), "calibration"), recipe.prune.calibration)
    assert drawn.shape == (recipe.prune.calibration.windows, recipe.prune.calibration.window)
    short = "word " * recipe.prune.calibration.window
    if recipe.prune.calibration.overlap:
        assert len(draw_windows(tokenizer, short, recipe.prune.calibration)) == recipe.prune.calibration.windows
    else:
        with pytest.raises(TrimlineError, match="With prune.calibration.overlap: true the windows may share tokens"):
            draw_windows(tokenizer, short, recipe.prune.calibration)
