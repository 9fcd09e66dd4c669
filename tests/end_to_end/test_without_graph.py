"""Runs that make no graph: of models of which none is made, and of one whose recipe asks for none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import trimline
from benchmarks.results.document import read
from deploy.verify import verify
from pipeline.architecture.families import FAMILIES
from pipeline.architecture.obstacles import no_graph
from pipeline.checkpoints.checkpoint import Checkpoint
from tests.end_to_end.scenario import OPTIONS, tiny_inputs
from trimline.recipe import plain_values, read_recipe

pytestmark = pytest.mark.usefixtures("quick_measuring")
QUICK = {"workloads": ["8/3"], "rounds": 2, "rounds_per_opening": 1, "minimum_seconds": 0.0, "most_seconds": 1.0}


def ran(values: dict[str, Any], inputs: Path, output: Path) -> trimline.RunResult:
    """The run of a recipe over tiny texts, in few windows and rounds."""
    values = values | {"text": {name: str(inputs / f"{name}.txt") for name in ("calibration", "evaluation")}}
    values["prune"] = {**values["prune"], "calibration": {"windows": 4, "window": 32}}
    values["benchmark"] = values.get("benchmark", {}) | QUICK
    return trimline.run(values | {"evaluate": {"windows": 2, "window": 64}}, output, options=OPTIONS)


def demand_whole(result: trimline.RunResult, model: Path) -> None:
    """Everything but a graph came out, and what is shipped is the smaller model."""
    assert not {"export dense", "export pruned", "evaluate pruned graph"} & set(result.artefacts)
    assert {"evaluate dense", "evaluate pruned", "benchmark", "report", "package"} <= set(result.artefacts)
    verify(result.package)
    assert not (result.package / "onnx").exists()
    assert Checkpoint(result.package / "model").bytes < Checkpoint(model).bytes
    card = (result.package / "README.md").read_text(encoding="utf-8")
    assert not [said for said in ("onnxruntime_genai", "\n- onnx\n") if said in card]  # how to load a graph, and the tag
    timed = read(result.artefacts["benchmark"].folder)
    assert {(row.model, row.phase) for row in timed.timings} >= {
        (name, phase) for name in ("dense", "pruned") for phase in ("prefill", "decode")
    }
    assert {record.lowering for record in timed.models.values()} == {"torch"}
    assert timed.models["pruned"].perplexity is not None
    report = json.loads((result.artefacts["report"].folder / "report.json").read_text())
    assert [row["passed"] for row in report["gates"]] == [True] * len(report["gates"])
    assert len(report["gates"]) >= 2
    assert {row["onnx_bytes"] for row in report["models"]} == {None}
    assert "ONNX size" not in (result.package / "report.md").read_text(encoding="utf-8")


def of_new(inputs: Path, tmp_path: Path, **asked: Any) -> dict[str, Any]:
    """What ``trimline new`` writes for the model beside the texts."""
    made = trimline.new(str(inputs / "model"), tmp_path / "new.yaml", **asked)
    assert read_recipe(made.path).export is None
    return plain_values(made.recipe)


def test_a_hybrid_goes_the_whole_way_by_the_recipe_that_new_writes(tmp_path: Path) -> None:
    inputs = tiny_inputs(tmp_path / "inputs", "lfm2")
    result = ran(of_new(inputs, tmp_path, remove=0.2, consumers=["transformers", "hub"]), inputs, tmp_path / "run")
    demand_whole(result, inputs / "model")
    assert (result.package / "serve" / "hub" / "model.safetensors").is_file()
    kept = yaml.safe_load((result.package / "recipe.yaml").read_text(encoding="utf-8"))
    assert (kept["export"], kept["benchmark"]["runtime"]) == (None, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in sorted(FAMILIES) if no_graph(FAMILIES[name]) and name != "lfm2"])
def test_every_kind_of_model_without_graphs(family: str, tmp_path: Path) -> None:
    inputs = tiny_inputs(tmp_path / "inputs", family)
    demand_whole(ran(of_new(inputs, tmp_path, remove=0.2), inputs, tmp_path / "run"), inputs / "model")


@pytest.mark.slow
def test_recovery_of_a_hybrid(tmp_path: Path) -> None:
    inputs = tiny_inputs(tmp_path / "inputs", "qwen3_5_text")
    recovery = {"recover": {"steps": 2, "batch": 1, "window": 32}}
    result = ran(of_new(inputs, tmp_path, remove=0.2) | recovery, inputs, tmp_path / "run")
    demand_whole(result, inputs / "model")
    assert {"recover", "evaluate rebuilt"} <= set(result.artefacts)
