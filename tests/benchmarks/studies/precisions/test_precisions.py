"""The benchmark of fewer bits on tiny models: the builder's own graph opens, and the tables say what the samples say."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import stage
from benchmarks.formulas.roofline import Call, Widths, operators, weight_bytes
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.runtimes.llama_cpp import NO_LLAMA_CPP, LlamaDecoder, has_llama_cpp
from benchmarks.runtimes.names import Runtime
from benchmarks.studies.precisions.__main__ import PLACES, main, measured, raw_name
from benchmarks.studies.precisions.llama_folder import llama_folder
from benchmarks.studies.precisions.stock_builder import stock_graph
from benchmarks.studies.precisions.tables import ALL, BUILDER, LLAMA, OURS, TIMED_IN, PrecisionResults, document
from benchmarks.timing.subject import Subject
from exporters.onnx.lowering.precision import bytes_per_weight
from exporters.onnx.running.genai import GenaiDecoder
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from tests.end_to_end.scenario import InProcess
from tests.exporters.models import uneven
from tests.tiny import tiny_model

pytest.importorskip("onnxruntime_genai", reason="the builder is part of onnxruntime-genai")
OPTIONS = RunOptions(threads=1)
SMALLER = "half of the FFN"
RECIPE = BenchmarkSlice(workloads=(Workload(prompt=512), Workload(prompt=128, output=17)), rounds=2, minimum_seconds=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    sizes = {"dense": 192, SMALLER: 96}
    return {name: tiny_model("llama", root / name, intermediate_size=ffn, max_position_embeddings=1024) for name, ffn in sizes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precisions")


def timed(models: dict[str, Path], folder: Path, recipe: BenchmarkSlice) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "BenchmarkWorker", InProcess)
        patch.setattr("benchmarks.studies.precisions.__main__.has_llama_cpp", lambda: False)
        return json.loads(json.dumps(measured(models, "int4", folder, recipe, OPTIONS).as_record()))


@pytest.fixture(scope="module")
def results(models: dict[str, Path], folder: Path) -> dict[str, Any]:
    return timed(models, folder, RECIPE)


def page_of(found: dict[str, Any]) -> str:
    return document([PrecisionResults.model_validate(found)])


@pytest.mark.slow
def test_every_form_is_timed_and_has_a_perplexity(results: dict[str, Any]) -> None:
    forms = {OURS, ALL, SMALLER}
    assert {row["model"] for row in results["comparisons"]} == forms
    assert set(results["perplexities"]) == forms | {BUILDER}
    assert results["perplexities"][OURS] == pytest.approx(results["perplexities"][ALL], rel=1e-4)
    assert results["perplexities"][BUILDER] == pytest.approx(results["perplexities"][OURS], rel=1e-2), (
        "the same quantiser, the same options"
    )


def test_the_tables(results: dict[str, Any]) -> None:
    text = page_of(results)
    assert text.count("| int4 |") == 5  # two graphs, two metrics; and the last position
    assert f"| {SMALLER} | decode |" in text
    assert f"| {LLAMA} | not run | {NO_LLAMA_CPP} |" in text
    assert "not resolved" in text, "two rounds resolve nothing"
    assert not any(word in text for word in ("reached", "missed"))


def test_a_prompt_pass_is_judged_by_the_time_that_was_removed(results: dict[str, Any]) -> None:
    found = copy.deepcopy(results)
    found["profile"] = {"shares": {"ffn": 0.46, "attention": 0.34, "head": 0.16, "rest": 0.04}, "allowed": {SMALLER: 1.5}}
    for row in found["comparisons"]:
        row["control_holds"] = True
        row["allowed"] = 2.0
        row["speed_up"] |= {"value": 1.4, "low": 1.36, "high": 1.44}
    lines = page_of(found).splitlines()
    by_metric = {metric: next(line for line in lines if f"| {SMALLER} | {metric}" in line) for metric in ("prefill", "decode")}
    assert by_metric["prefill"].endswith("| 1.500 | 0.933 [0.907, 0.960] | 0.9 | reached |")
    assert by_metric["decode"].endswith("| – | – | 0.9 | missed |")
    assert "FFNs 46%, attention with its projections 34%, the output head 16%, the rest 4%." in page_of(found)


def test_what_the_smaller_model_can_save_is_measured(results: dict[str, Any]) -> None:
    assert 1.0 < results["profile"]["allowed"][SMALLER] < 10.0
    assert sum(results["profile"]["shares"].values()) == pytest.approx(1.0)


def test_the_same_folders_are_timed_in_genais_own_generator(
    models: dict[str, Path], folder: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Watched(GenaiDecoder):
        def __init__(self, folder: Path, threads: int = 0) -> None:
            opened.append(folder.name)
            super().__init__(folder, threads)

    monkeypatch.setattr("exporters.onnx.running.genai.GenaiDecoder", Watched)
    found = timed(models, folder, RECIPE.model_copy(update={"runtime": "onnxruntime_genai"}))
    assert {"int4-builder", "int4-dense", "int4-half-of-the-FFN"} <= set(opened)
    assert {row["model"] for row in found["comparisons"]} == {OURS, ALL, SMALLER}
    assert found["perplexities"] == results["perplexities"]
    assert page_of(found).startswith("Timed in onnxruntime-genai's own generator")
    assert page_of(results).startswith("Timed in ONNX Runtime's own session; perplexities")


@pytest.mark.parametrize(("runtime", "place"), [("onnxruntime", "precisions"), ("onnxruntime_genai", "precisions-genai")])
def test_each_runtime_has_its_own_raw_file_and_its_own_place(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime, place: str
) -> None:
    asked = []
    monkeypatch.setattr("benchmarks.studies.precisions.__main__.checkpoints", lambda *_: {})

    def measured_here(_models: Any, precision: str, _folder: Path, recipe: BenchmarkSlice, _options: RunOptions) -> PrecisionResults:
        asked.append((precision, recipe.runtime))
        return PrecisionResults.model_validate(results | {"recipe": results["recipe"] | {"runtime": recipe.runtime}})

    monkeypatch.setattr("benchmarks.studies.precisions.__main__.measured", measured_here)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name}:begin -->\nempty\n<!-- {name}:end -->\n" for name in PLACES.values()), encoding="utf-8")
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--output", str(tmp_path), "--precision", "int4", "--runtime", runtime, "--page", str(page)])
    assert done.exit_code == 0, done.output
    assert asked == [("int4", runtime)]
    assert [path.name for path in tmp_path.glob("*.json")] == [raw_name("int4", runtime)]
    filled = page.read_text(encoding="utf-8").split(f"<!-- {place}:begin -->")[1]
    assert filled.lstrip().startswith(TIMED_IN[runtime])
    assert page.read_text(encoding="utf-8").count("\nempty\n") == 1
    assert len({raw_name("int4", name) for name in ("onnxruntime", "onnxruntime_genai")}) == 2


def test_one_metric_is_printed_and_leaves_the_page(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = copy.deepcopy(results)
    del decoding["profile"], decoding["samples"]["512/1"]
    decoding["comparisons"] = [row for row in results["comparisons"] if row["workload"] != "512/1"]
    asked = []
    monkeypatch.setattr("benchmarks.studies.precisions.__main__.checkpoints", lambda *_: {})
    monkeypatch.setattr(
        "benchmarks.studies.precisions.__main__.measured",
        lambda *given: asked.append(given[3].workloads) or PrecisionResults.model_validate(decoding),
    )
    page = tmp_path / "page.md"
    page.write_text("as it was", encoding="utf-8")
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--output", str(tmp_path), "--precision", "int4", "--metric", "decode", "--page", str(page)])
    assert done.exit_code == 0, done.output
    assert asked == [(Workload(prompt=128, output=17),)]
    assert (tmp_path / "precision-int4-decode.json").is_file()
    assert page.read_text(encoding="utf-8") == "as it was"
    assert f"| {OURS} | decode |" in done.output
    assert "prefill" not in done.output


def test_a_control_that_holds_gives_an_outcome(results: dict[str, Any]) -> None:
    found = copy.deepcopy(results)
    for row in found["comparisons"]:
        row["control_holds"] = True
        row["speed_up"] |= {"value": 0.8, "low": 0.7, "high": 0.99 if row["model"] == OURS else 1.01}
    lines = page_of(found).splitlines()
    assert next(line for line in lines if f"| {OURS} | decode" in line).endswith("missed |")
    assert next(line for line in lines if f"| {ALL} | decode" in line).endswith("reached |")


def test_pruned_models_are_also_put_over_llama_cpp(results: dict[str, Any]) -> None:
    found = copy.deepcopy(results)
    found["perplexities"][LLAMA] = 20.0
    for samples in found["samples"].values():
        samples[LLAMA] = {
            "prefill": [4 * seconds for seconds in samples[SMALLER]["prefill"]],
            "gaps": [[gap / 2 for gap in gaps] for gaps in samples[SMALLER]["gaps"]],
        }
    for row in found["comparisons"]:
        row["control_holds"] = True
    lines = [line for line in page_of(found).splitlines() if "over llama.cpp" in line]
    assert [line.split(" | ")[1] for line in lines] == ["prefill", "decode"]
    assert "4.000 [4.000, 4.000], over llama.cpp" in lines[0]
    assert lines[0].endswith("reached |")
    assert lines[1].endswith("missed |")


def test_a_precision_that_is_not_compared_is_a_sentence(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--output", str(tmp_path / "out"), "--precision", "fp16", "--print-only"])
    assert (done.exit_code, done.stderr) == (2, "The precision 'fp16' is not compared here. Known are fp32, int8, int4.\n")


def test_the_builder_says_why_it_cannot(tmp_path: Path) -> None:
    checkpoint = uneven("llama", tmp_path)
    with pytest.raises(TrimlineError, match="builder fails on"):
        stock_graph(checkpoint, "fp32", tmp_path / "out")


def test_what_four_bits_cost_to_read(models: dict[str, Path], tmp_path: Path) -> None:
    export(models["dense"], ExportSlice(precision="int4", perplexity_bar=100), OPTIONS, tmp_path, Events())
    subject = Subject.read("ours", tmp_path)
    assert subject.bits["lm_head"] == 8
    assert subject.bits["0.self_attn.q_proj"] == subject.bits["0.mlp.down_proj"] == 8
    assert "0.mlp.gate_proj" not in subject.bits
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    stored = {tensor.name: math.prod(tensor.dims) * (4 if tensor.name.endswith("scales") else 1) for tensor in graph.initializer}
    quantised = sum(size for name, size in stored.items() if name.endswith(("qweight", "scales", "qzeros")))
    norms = 64 * (2 * len(subject.geometry.blocks) + 1)
    assert weight_bytes(subject.geometry, subject.widths) == quantised + norms * bytes_per_weight(4)


def test_widths_of_single_operators(models: dict[str, Path]) -> None:
    geometry, call = Checkpoint(models["dense"]).geometry, Call(1)
    plain, mixed = Widths(4, 0.5), Widths(4, 0.5, {"1.mlp.down_proj": 1.0, "lm_head": 2.0})
    bytes_of = [{op.name: op.bytes for op in operators(geometry, call, widths)} for widths in (plain, mixed)]
    differ = {name: bytes_of[1][name] - size for name, size in bytes_of[0].items() if bytes_of[1][name] != size}
    assert differ == {"1.mlp.down_proj": 0.5 * 192 * 64, "lm_head": 1.5 * 128 * 64}
    assert weight_bytes(geometry, mixed) - weight_bytes(geometry, plain) == sum(differ.values())
    assert [bytes_per_weight(bits) for bits in (32, 16, 8, 4)] == [4, 2, 1.15625, 0.640625]


def test_the_builders_graph_computes_what_ours_computes(models: dict[str, Path], tmp_path: Path) -> None:
    (ours := tmp_path / "ours").mkdir()
    (theirs := tmp_path / "theirs").mkdir()
    export(models["dense"], ExportSlice(logits="all"), OPTIONS, ours, Events())
    stock_graph(models["dense"], "fp32", theirs)
    ids = np.arange(4, 24)[None]
    np.testing.assert_allclose(OnnxDecoder(theirs, 1).logits(ids), OnnxDecoder(ours, 1).logits(ids), atol=1e-4)


def test_four_bits_are_the_builders_own_bit_for_bit(models: dict[str, Path], tmp_path: Path) -> None:
    """Ours quantises matrix by matrix, the builder the finished graph."""
    (ours := tmp_path / "ours").mkdir()
    (theirs := tmp_path / "theirs").mkdir()
    export(models["dense"], ExportSlice(precision="int4", perplexity_bar=100), OPTIONS, ours, Events())
    stock_graph(models["dense"], "int4", theirs)
    first, second = quantised(ours), quantised(theirs)
    assert first.keys() == second.keys()
    assert len(first) > 10
    for name, arrays in first.items():
        assert [array.tobytes() for array in arrays] == [array.tobytes() for array in second[name]], name


def quantised(folder: Path) -> dict[str, list[np.ndarray]]:
    """Values, scales and offsets of every product in blocks, by its name in the builder."""
    graph = onnx.load(folder / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    products = {node.name.split("/MatMul")[0]: node.input[1:] for node in graph.node if node.op_type == "MatMulNBits"}
    return {name: [onnx.numpy_helper.to_array(stored[tensor]) for tensor in inputs] for name, inputs in products.items()}


@pytest.mark.skipif(not has_llama_cpp(), reason=NO_LLAMA_CPP)
def test_llama_cpp_is_a_decoder_like_the_others(smollm2: Path, tmp_path: Path) -> None:
    from pipeline.sources.model import default_gguf

    llama_folder(default_gguf(), smollm2, tmp_path)
    decoder = LlamaDecoder(tmp_path, 2, every_position=True)
    decoder.run(np.arange(100, 110)[None], decoder.empty(1, 20))
    (loss,) = decoder.losses(torch.arange(100, 164)[None])
    assert 1 < loss < 15
