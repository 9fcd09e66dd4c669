"""Every scenario from recipe to package: what it leaves loads, opens, verifies, and is the same when made again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import trimline
from deploy.verify import verify
from exporters.onnx.running.session import OnnxDecoder
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.files import read_json
from pipeline.plan.plan import Plan
from tests.end_to_end.scenario import OPTIONS, all_files, changed, computed_files, recipe, tiny_inputs
from tests.quick import quick_alone
from trimline.stages.run import RunResult

pytestmark = pytest.mark.usefixtures("quick_measuring")
SCENARIOS = (
    ("cfsp-least-squares", "llama"),
    ("uniform", "llama"),
    ("uniform", "qwen2"),
    ("depth-then-width", "llama"),
    ("free-global", "llama"),
    ("narrower-and-shorter", "phi3"),
    ("opt-portable", "opt"),
)
FUSED = SCENARIOS[:-1]  # portable exports take many seconds; tests/exporters compares the bytes of two
QUICK = (("cfsp-least-squares", "llama"), ("uniform", "qwen2"), ("depth-then-width", "llama"), ("narrower-and-shorter", "phi3"))
OWN_CODE = {"decilm", "free"}
STAGES = {
    *("source", "text", "measure", "prune", "rebuild", "evaluate dense", "evaluate pruned", "export dense", "export pruned"),
    *("benchmark", "report", "package"),
}


@dataclass(frozen=True)
class Scenario:
    """A finished run."""

    recipe: dict[str, Any]
    inputs: Path
    result: RunResult

    def again(self, output: Path, recipe: dict[str, Any] | None = None) -> RunResult:
        return trimline.run(recipe or self.recipe, output, options=OPTIONS)


@pytest.fixture(scope="module", params=quick_alone(SCENARIOS, QUICK, ids="-".join))
def done(request, tmp_path_factory, quick_measuring) -> Scenario:
    name, family = request.param
    inputs = tiny_inputs(tmp_path_factory.mktemp("inputs"), family)
    values = recipe(name, inputs)
    return Scenario(values, inputs, trimline.run(values, tmp_path_factory.mktemp("run"), options=OPTIONS))


def test_the_package_is_whole(done):
    package = done.result.package
    top = {path.name for path in package.iterdir()}
    reports = {"report.html", "report.md", "run.json"}
    assert top == {"README.md", "manifest.json", "SHA256SUMS", "sbom.cdx.json", "model", "onnx", "plan.json", "recipe.yaml"} | reports
    assert bool(list((package / "model").glob("*.py"))) == (done.recipe["rebuild"]["profile"] in OWN_CODE)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in (package / "model").iterdir()
    }
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= {path.name for path in (package / "onnx").iterdir()}
    assert verify(package) == []


def test_its_recipe_makes_the_same_plan(done, tmp_path):
    plan = trimline.prune(done.result.package / "recipe.yaml", tmp_path / "plan", options=OPTIONS)
    assert (tmp_path / "plan" / "plan.json").read_bytes() == (done.result.package / "plan.json").read_bytes()
    assert plan.selection == Plan.read(done.result.artefacts["prune"].folder).selection


def test_the_checkpoint_loads_and_is_smaller(done):
    folder = done.result.package / "model"
    needs_code = done.recipe["rebuild"]["profile"] in OWN_CODE
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=needs_code)
    held = sum(tensor.numel() for _, tensor in Checkpoint(folder).tensors())
    assert model.num_parameters() == held == Checkpoint(folder).geometry.total_parameters()
    assert held < Checkpoint(done.inputs / "model").geometry.total_parameters()
    prompt = AutoTokenizer.from_pretrained(folder)("once upon a time", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert written.shape == (1, prompt["input_ids"].shape[1] + 8)


def test_onnx_computes_what_the_checkpoint_computes(done):
    folder = done.result.package / "onnx"
    assert onnx.load(folder / "model.onnx", load_external_data=True).graph.node
    model = AutoModelForCausalLM.from_pretrained(done.result.package / "model", trust_remote_code=True, dtype=torch.float32)
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    for decoder, positions in ((OnnxDecoder(folder, 1), slice(-1, None)), (OnnxDecoder(folder, 1, every_position=True), slice(None))):
        found, _ = decoder.step(ids.numpy(), decoder.empty(1, 16))
        torch.testing.assert_close(torch.as_tensor(found), expected[:, positions], atol=1e-3, rtol=0)


def test_the_report_says_what_the_files_say(done):
    report, artefacts = done.result.report, done.result.artefacts
    rows = {row.name: row for row in report.models}
    for lane, folder in (("dense", done.inputs / "model"), ("pruned", done.result.package / "model")):
        assert rows[lane].parameters == Checkpoint(folder).geometry.total_parameters()
        assert rows[lane].perplexity.value == read_json(artefacts[f"evaluate {lane}"].folder / "perplexity.json")["perplexity"]
    assert {row.passed for row in report.gates} <= {True, None}
    assert len(report.gates) >= 12
    widths = [(len(ffn), len(kv)) for ffn, kv in zip(*_kept(done), strict=True)]
    assert [(row.ffn, row.kv_groups) for row in report.blocks] == widths


def test_running_again_skips_every_stage_and_changes_no_byte(done):
    before = all_files(done.result.folder)
    again = done.again(done.result.folder)
    as_it_goes = done.recipe["prune"]["steps"][0]["method"] == "laco"  # which measures trial after trial
    assert set(again.artefacts) == STAGES - ({"measure"} if as_it_goes else set())
    assert [name for name, artefact in again.artefacts.items() if not artefact.skipped] == []
    assert all_files(done.result.folder) == before


@pytest.mark.parametrize("done", quick_alone(FUSED, QUICK[:2], ids="-".join), indirect=True)
def test_a_fresh_run_elsewhere_makes_the_same_bytes(done, tmp_path):
    fresh = done.again(tmp_path / "fresh")
    assert not any(artefact.skipped for artefact in fresh.artefacts.values())
    first, second = (_without_package_keys(computed_files(output)) for output in (done.result.folder, tmp_path / "fresh"))
    assert len(first) > 30
    assert first == second


def test_a_changed_slice_runs_only_what_depends_on_it(inputs, tmp_path):
    values, output = recipe("cfsp-least-squares", inputs), tmp_path / "run"
    trimline.run(values, output, options=OPTIONS)
    changes = (
        (("evaluate", "windows"), 3, {"evaluate dense", "evaluate pruned", "benchmark", "report", "package"}),
        (("benchmark", "rounds"), 2, {"benchmark", "report", "package"}),
        (("package", "licence"), "mit", {"report", "package"}),
        (("prune", "steps", 0, "budget", "ffn", "remove"), 0.4, STAGES - {"source", "text", "measure", "evaluate dense", "export dense"}),
    )
    for path, value, expected in changes:
        again = trimline.run(changed(values, *path, to=value), output, options=OPTIONS)
        assert {name for name, artefact in again.artefacts.items() if not artefact.skipped} == expected, path
    assert all(artefact.skipped for artefact in trimline.run(values, output, options=OPTIONS).artefacts.values())


def _kept(done: Scenario) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """FFN channels and KV groups per original block; none for a block that went."""
    selection = Plan.read(done.result.artefacts["prune"].folder).selection
    return tuple(
        [units if number in selection.blocks else () for number, units in enumerate(spaces)]
        for spaces in (selection.ffn, selection.kv_groups)
    )


def _without_package_keys(files: dict[str, str]) -> dict[str, str]:
    """The keys of report and package depend on the command, which names the output folder."""
    return {re.sub(r"^package-\w+/", "", name): digest for name, digest in files.items()}
