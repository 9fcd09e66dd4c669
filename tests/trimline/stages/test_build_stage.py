"""The build stage of a run: what is refused before hours of pruning, its key, its rows in the report."""

from __future__ import annotations

import dataclasses

import pytest

from exporters.onnx.running.shapes import EngineRequest
from pipeline.artefacts.artefact import Artefact
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from tests.end_to_end.scenario import OPTIONS, changed, recipe, tiny_inputs
from tests.exporters.tensorrt.conftest import rtx, sparse_checkpoint, sparse_onnx  # noqa: F401 - fixtures
from trimline.cli.arguments import parse_request
from trimline.recipe import checked_recipe
from trimline.stages.gate_rows import engine_gates
from trimline.stages.lanes import timed
from trimline.stages.names import DENSE, KERNEL_TIMINGS, PREFLIGHT, PRUNED, SOURCE, TEXT, engine_of, export_of
from trimline.stages.run import Run

RTX = {"builder": "tensorrt_rtx", "sparsity": "require", "compute_capabilities": ["8.6"]}
NO_GPU = pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return changed(recipe("opt-portable", tiny_inputs(tmp_path_factory.mktemp("inputs"), "opt")), "build", to=RTX)


def begun(values, output) -> Run:
    return Run(checked_recipe(values), OPTIONS, output, Events(), "trimline run")


def prepared(values, output) -> Run:
    run = begun(values, output)
    run.do(SOURCE)
    run.do(TEXT)
    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"export": {"lowering": "auto"}}, "standard operators only.*lowering: auto"),
        ({"export": {"lowering": "portable", "precision": "int8"}}, "exports in int8, and TensorRT.*fp32 and fp16 graphs only"),
        ({"export": {"lowering": "portable", "precision": "int4"}}, "exports in int4, and TensorRT"),
        ({"export": {"lowering": "portable", "precision": "bf16"}}, "bf16 does not run in ONNX Runtime on a processor"),
        ({"benchmark": {"runtime": "tensorrt"}}, "times TensorRT engines and builds none"),
        ({"benchmark": {"runtime": "llama_cpp"}}, "llama_cpp opens GGUF files, which a run does not write"),
        pytest.param({"benchmark": {"runtime": "torch_2_4"}}, "torch_2_4 needs a GPU", marks=NO_GPU),
        pytest.param({"build": {"builder": "tensorrt"}}, "no NVIDIA driver", marks=NO_GPU),
    ],
)
def test_refused_before_anything_is_measured(values, tmp_path, rtx, change, words):  # noqa: F811
    with pytest.raises(TrimlineError, match=words):
        prepared(values | change, tmp_path).do(PREFLIGHT)


def test_bf16_is_no_engine_even_where_a_gpu_runs_it(values, tmp_path, rtx):  # noqa: F811
    run = prepared(values | {"export": {"lowering": "portable", "precision": "bf16"}}, tmp_path)
    run.options = dataclasses.replace(OPTIONS, device="cuda")
    with pytest.raises(TrimlineError, match="exports in bf16, and TensorRT engines"):
        run.do(PREFLIGHT)


def test_wrong_values_are_sentences(values):
    with pytest.raises(TrimlineError, match="belong to builder 'tensorrt_rtx'"):
        checked_recipe(values | {"build": {"compute_capabilities": ["8.6"]}})
    with pytest.raises(TrimlineError, match=r"unknown key 'build\.bulder'.*'builder'"):
        checked_recipe(values | {"build": {"bulder": "tensorrt"}})


def test_the_stage_its_key_and_its_rows(values, tmp_path, sparse_onnx, rtx):  # noqa: F811
    run = prepared(values, tmp_path)
    run.done[export_of(PRUNED)] = Artefact("export", "some key", sparse_onnx, 0.0)
    run.do(engine_of(PRUNED))
    made = run.done[engine_of(PRUNED)]
    record = read_json(made.folder / "build.json")
    assert record["profiles"][0]["shapes"]["input_ids"] == [[1, 1], [1, 8], [1, 8]]  # from the benchmark's workloads
    assert (tmp_path / "store" / KERNEL_TIMINGS).is_file()
    rows = {row.name: row for row in engine_gates("pruned", made.folder)}
    assert (rows["pruned ONNX: weights that are 2:4"].passed, rows["pruned ONNX: weights that are 2:4"].figure) == (True, 1.0)
    assert rows["pruned ONNX → tensorrt_rtx engine"].passed is None
    assert rows["pruned ONNX → tensorrt_rtx engine"].detail.startswith("built, not run: ")
    run.do(engine_of(PRUNED))
    assert run.done[engine_of(PRUNED)].skipped
    other = prepared(changed(values, "benchmark", "workloads", to=[{"prompt": 9}]), tmp_path)
    other.done[export_of(PRUNED)] = run.done[export_of(PRUNED)]
    other.do(engine_of(PRUNED))
    assert other.done[engine_of(PRUNED)].key != made.key


def test_the_benchmark_opens_what_its_runtime_runs(values):
    folders = {"onnxruntime": "export dense", "onnxruntime_cuda": "export dense", "tensorrt": "build dense", "torch": "source"}
    for runtime, stage in folders.items():
        assert str(timed(checked_recipe(changed(values, "benchmark", "runtime", to=runtime)), DENSE)) == stage


def test_int8_is_a_row(tmp_path):
    record = {
        "builder": "tensorrt",
        "two_four": {"complies": False, "two_four": 0, "weights": 3},
        "sparse_kernels": {"verdict": "refuted", "why": "SPARSE_WEIGHTS was off"},
        "int8": {"perplexity": {"before": 20.0, "after": 21.0}, "ratio": 1.05, "bar": 1.1, "tokens": 2048},
        "run": {"run": False, "why": "built, not run", "proves": "nothing"},
    }
    write_json(tmp_path / "build.json", record)
    rows = [dataclasses.asdict(row) for row in engine_gates("dense", tmp_path)]
    assert [(row["name"], row["figure"], row["bar"]) for row in rows][0] == ("dense ONNX → int8", 1.05, 1.1)
    assert "20.00 → 21.00" in rows[0]["detail"]
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("text", "expected"), [("512", (512, 1, 1)), ("512/17", (512, 17, 1)), ("128/65x8", (128, 65, 8)), ("7x2", (7, 1, 2))]
)
def test_requests(text, expected):
    assert parse_request(text) == EngineRequest(*expected)


@pytest.mark.parametrize("text", ["", "0", "512/", "a/b", "512/17x0", "-1", "٣"])
def test_what_is_no_request(text):
    with pytest.raises(TrimlineError, match="is no request"):
        parse_request(text)


@pytest.mark.slow
def test_a_whole_run_with_engines(values, tmp_path, rtx, monkeypatch):  # noqa: F811
    """Both lanes; the report says of each that it was built and not run."""
    import benchmarks.stage
    from tests.end_to_end.scenario import InProcess

    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
    result = begun(changed(values, "build", "sparsity", to="auto"), tmp_path / "out").all()
    assert {"build dense", "build pruned"} <= set(result.artefacts)
    rows = [gate for gate in result.report.gates if "tensorrt_rtx engine" in gate.name]
    assert [gate.passed for gate in rows] == [None, None]
    assert "built, not run" in result.page.read_text(encoding="utf-8")
