"""Experts removed from a tiny mixture: by the verbs that end with a gated folder, by a recipe that ``trimline new`` wrote, by a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import trimline
from deploy.verify import verify
from pipeline.checkpoints.checkpoint import Checkpoint
from tests.end_to_end.scenario import OPTIONS, SETTINGS, tiny_inputs
from tests.end_to_end.scenario import trimline as called
from tests.tiny import tiny_model
from trimline.recipe import read_recipe

RECIPE = """
name: experts
model: {folder}/model
text: {{calibration: {folder}/calibration.txt, evaluation: {folder}/evaluation.txt}}
prune:
  calibration: {{windows: 4, window: 32}}
  steps:
    - method: {method}
      budget: {{expert: {{remove: 0.25}}}}
rebuild: {{profile: uniform}}
evaluate: {{windows: 2, window: 64}}
benchmark: {{workloads: [8/3], rounds: 2, rounds_per_opening: 1, minimum_seconds: 0.0, most_seconds: 1.0}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"), "qwen3_moe", num_hidden_layers=2)


def written(inputs: Path, tmp_path: Path, method: str = "reap") -> Path:
    path = tmp_path / "experts.yaml"
    path.write_text(RECIPE.format(folder=inputs, method=method), encoding="utf-8")
    return path


def test_prune_and_rebuild_end_with_a_gated_folder_of_the_stock_class(inputs: Path, tmp_path: Path) -> None:
    pruned = called("prune", written(inputs, tmp_path), "--output", tmp_path / "plan", *SETTINGS)
    assert "12 experts, 0 FFN channels" in pruned.stdout
    assert called("rebuild", inputs / "model", tmp_path / "plan", "--output", tmp_path / "out", "--threads", "1").code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert type(model).__name__ == "Qwen3MoeForCausalLM"
    assert model.config.num_local_experts == 6
    assert json.loads((tmp_path / "out" / "gate.json").read_text())["passed"]
    geometry = Checkpoint(tmp_path / "out").geometry
    seen = called("inspect", tmp_path / "out")
    assert "Experts" in seen.stdout
    assert f"{geometry.active_parameters() / 1000:.1f} K" in seen.stdout


def test_new_proposes_experts_for_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dense = Checkpoint(tiny_model("qwen3_moe", Path("mixture"))).bytes
    called("new", "mixture", "--fit", f"{int(0.9 * dense)}", "--output", "fit.yaml")
    (step,) = read_recipe(Path("fit.yaml")).prune.steps
    assert step.method == "reap"
    (budget,) = step.budget.values()
    assert isinstance(budget.keep, int)
    assert 2 <= budget.keep < 8


@pytest.mark.slow
@pytest.mark.usefixtures("quick_measuring")
@pytest.mark.parametrize("method", ["reap", "expert_loss"])
def test_a_whole_run(inputs: Path, tmp_path: Path, method: str) -> None:
    result = trimline.run(written(inputs, tmp_path, method), tmp_path / "run", options=OPTIONS)
    verify(result.folder / "package")
    report = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Active decoder parameters" in report
    points = result.report.expert_curve.points
    assert [(point.kept, point.planned) for point in points] == [(8, False), (7, False), (6, True), (5, False), (4, False)]
    dense, pruned = (result.report.model(role).perplexity.value for role in ("dense", "pruned"))
    assert [points[0].perplexity.value, points[2].perplexity.value] == pytest.approx([dense, pruned], rel=1e-5)
    assert [row.block for row in result.report.routed] == [0, 1]
    assert "plot-routed" in report


@pytest.mark.slow
@pytest.mark.usefixtures("quick_measuring")
def test_a_whole_run_that_trains_what_is_left(inputs: Path, tmp_path: Path) -> None:
    path = written(inputs, tmp_path)
    training = "{steps: 4, batch: 2, micro_batch: 2, window: 24, windows: 8, held_out: 2, lora: {rank: 2}}"
    path.write_text(f"{path.read_text(encoding='utf-8')}recover: {training}\ncurve: {{removed: [0.5]}}\n", encoding="utf-8")
    result = trimline.run(path, tmp_path / "run", options=OPTIONS)
    verify(result.folder / "package")
    assert [(point.kept, point.planned) for point in result.report.expert_curve.points] == [(8, False), (6, True), (4, False)]
    assert result.report.expert_curve.points[1].perplexity.value == pytest.approx(result.report.recovery.before.value, rel=1e-5)
    text = (result.folder / "package" / "report.md").read_text(encoding="utf-8")
    assert "this run, before recovery" in text
    assert "| Perplexity with 4 experts |" in text
