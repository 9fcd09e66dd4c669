"""Pruned and in 4 bits, from recipe to package: the perplexities that are shown are those of the graphs that ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import trimline
from deploy.verify import verify
from exporters.onnx.running.session import OnnxDecoder
from pipeline.common.files import read_json
from tests.end_to_end.scenario import OPTIONS, recipe, tiny_inputs
from trimline.stages.run import RunResult

pytestmark = pytest.mark.usefixtures("quick_measuring")
pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, quick_measuring: object) -> RunResult:
    inputs = tiny_inputs(tmp_path_factory.mktemp("inputs"))
    return trimline.run(recipe("four-bits", inputs), tmp_path_factory.mktemp("run"), options=OPTIONS)


def perplexity(done: RunResult, stage: str) -> float:
    return float(read_json(done.artefacts[stage].folder / "perplexity.json")["perplexity"])


def test_the_report_shows_the_graphs_perplexities(done: RunResult) -> None:
    rows = {row.name: row for row in done.report.models}
    for lane in ("dense", "pruned"):
        measure = rows[lane].perplexity
        assert measure is not None
        assert measure.value == perplexity(done, f"evaluate {lane} graph")
        assert measure.value != perplexity(done, f"evaluate {lane}")
        assert measure.value == pytest.approx(perplexity(done, f"evaluate {lane}"), rel=0.5)
    assert "int4 graphs in ONNX Runtime" in done.report.evaluation
    results = read_json(done.artefacts["benchmark"].folder / "results.json")
    assert results["models"]["pruned"]["perplexity"] == perplexity(done, "evaluate pruned graph")
    assert results["models"]["pruned"]["precision"] == "int4"


def test_the_report_shows_the_gates(done: RunResult) -> None:
    gates = {row.name: row for row in done.report.gates}
    for lane in ("dense", "pruned"):
        cost = gates[f"{lane} checkpoint → ONNX in int4, perplexity"]
        assert cost.passed
        assert cost.bar == 1.5
        assert gates[f"{lane} graph read at once → onnxruntime-genai"].passed
        assert "nats" in gates[f"{lane} graph read at once → ONNX, rows of unequal length"].detail


def test_the_package_holds_a_graph_in_four_bits(done: RunResult) -> None:
    folder: Path = done.package / "onnx"
    assert verify(done.package) == []
    assert "MatMulNBits" in {node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node}
    decoder = OnnxDecoder(folder, 1)
    assert decoder.last_logits_only
    assert decoder.greedy(np.array([[5, 6, 7]]), 4).shape == (1, 4)


def test_running_again_skips_every_stage(done: RunResult) -> None:
    again = trimline.run(done.folder / "package" / "recipe.yaml", done.folder, options=OPTIONS)
    ran = [name for name, artefact in again.artefacts.items() if not artefact.skipped]
    assert set(ran) <= {"report", "package"}, "their keys name the command"
