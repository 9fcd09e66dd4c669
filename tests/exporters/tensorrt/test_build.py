"""Engines built for real with TensorRT-RTX on this machine's processor, and everything that is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import onnx
import pytest

from exporters.onnx.running.shapes import EngineRequest
from exporters.onnx.sparsity import check_two_four, weight_patterns
from exporters.recipe import BuildSlice
from exporters.tensorrt import stage
from exporters.tensorrt.builders import demand_builder
from exporters.tensorrt.child import build_in_child, log_lines
from exporters.tensorrt.session import EngineDecoder
from exporters.tensorrt.stage import build
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import GateError, TrimlineError, explain
from pipeline.common.events import Event, Events
from tests.end_to_end.disks import disk, largest_file, size_of
from tests.end_to_end.scenario import assert_refused, prose, trimline
from tests.exporters.models import OPTIONS
from tests.quick import quick_alone

RTX = BuildSlice(builder="tensorrt_rtx", compute_capabilities=("8.6",))
REQUESTS = [EngineRequest(32, 4, 2)]


def built(graph: Path, out: Path, recipe: BuildSlice = RTX, events: Events | None = None, **more: object) -> dict:
    out.mkdir()
    build(graph, recipe, REQUESTS, OPTIONS, out, events or Events(), **more)  # type: ignore[arg-type]
    return json.loads((out / "build.json").read_text())


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "calibration.txt").write_text(prose(1, 60), encoding="utf-8")
    (folder / "evaluation.txt").write_text(prose(2, 60), encoding="utf-8")
    return folder


@pytest.fixture(
    params=quick_alone(("sparse_onnx", "half_onnx"), ("sparse_onnx",), ids={"sparse_onnx": "fp32", "half_onnx": "fp16"}.__getitem__)
)
def graph(request) -> Path:
    """The portable folder in every precision that engines are built from."""
    return request.getfixturevalue(request.param)


def test_the_pruned_uneven_decoder_is_parsed_and_built(graph, tmp_path, rtx):
    told: list[Event] = []
    record = built(graph, tmp_path / "engine", BuildSlice(builder="tensorrt_rtx", sparsity="require"), Events(told.append))
    assert (tmp_path / "engine" / "model.engine").stat().st_size == record["bytes"] > 100_000
    assert record["layers"] > 300
    assert record["flags"] == ["SPARSE_WEIGHTS"]
    assert (record["two_four"]["complies"], record["two_four"]["weights"]) == (True, 21)
    assert record["sparse_kernels"]["verdict"] == "unknown"  # RTX chooses kernels on the GPU, and says nothing here
    assert record["run"] == {"run": False, "why": "built, not run", "proves": record["run"]["proves"]}
    assert "not that TensorRT itself builds it" in record["run"]["proves"]
    assert [profile["name"] for profile in record["profiles"]] == ["prefill", "decode"]
    assert any("built, not run" in event.text for event in told)
    assert any("network tensors" in line for line in log_lines(tmp_path / "engine" / "build.log"))
    assert json.loads((tmp_path / "engine" / "seconds.json").read_text()).keys() == {"parse", "build"}
    assert (tmp_path / "engine" / "checkpoint_config.json").is_file()


def test_the_flag_follows_the_weights(sparse_onnx, tmp_path, rtx):
    broken = Path(shutil.copytree(sparse_onnx, tmp_path / "broken"))
    model = onnx.load(broken / "model.onnx")
    name = next(found.name for found in weight_patterns(sparse_onnx / "model.onnx") if not found.head)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.raw_data = b"\x00\x00\x80\x3f" * (len(tensor.raw_data) // 4)
    (broken / "model.onnx.data").unlink()
    onnx.save(model, broken / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    record = built(broken, tmp_path / "first")
    assert (record["flags"], record["two_four"]["others"], record["sparse_kernels"]["verdict"]) == ([], [name], "refuted")
    with pytest.raises(TrimlineError, match=f"20 of 21 weights .* not so are {name}"):
        build(broken, BuildSlice(builder="tensorrt_rtx", sparsity="require"), REQUESTS, OPTIONS, tmp_path, Events())


def test_int8_keeps_two_four_and_is_built(graph, tmp_path, texts, rtx):
    recipe = RTX.model_copy(update={"precision": "int8", "calibration_windows": 4, "calibration_window": 64, "sparsity": "require"})
    record = built(graph, tmp_path / "engine", recipe, texts=texts)
    quantised = onnx.load(tmp_path / "engine" / "qdq" / "model.onnx", load_external_data=False)
    readers = {name: node for node in quantised.graph.node for name in node.input}
    products = [node for node in quantised.graph.node if node.op_type == "MatMul" and node.input[1].endswith("_DequantizeLinear_Output")]
    weights = [node for node in products if "val_" in node.input[1] and f"{node.output[0]}" in readers]
    assert record["int8"]["products"] == 21
    assert len(weights) >= 21
    assert all(readers[node.output[0]].op_type == "QuantizeLinear" for node in weights)  # quantised behind the product too
    assert all(not any(zero for zero in point) for point in zero_points(quantised))
    patterns = list(weight_patterns(tmp_path / "engine" / "qdq" / "model.onnx"))
    assert check_two_four(patterns)["complies"]
    assert record["int8"]["two_four"] == {"before": True, "after": True}
    assert 0.9 < record["int8"]["ratio"] < 1.1
    assert record["flags"] == ["SPARSE_WEIGHTS"]
    assert json.loads((tmp_path / "engine" / "export.json").read_text())["precision"] == "int8"
    assert sorted(path.name for path in graph.iterdir()) == sorted({path.name for path in graph.iterdir()} - {"model-inferred.onnx"})


def zero_points(model: onnx.ModelProto) -> list:
    names = {node.input[2] for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}}
    return [onnx.numpy_helper.to_array(tensor).reshape(-1).tolist() for tensor in model.graph.initializer if tensor.name in names]


def test_int8_that_costs_too_much_fails(sparse_onnx, tmp_path, texts, monkeypatch, rtx):
    recipe = RTX.model_copy(update={"precision": "int8", "calibration_windows": 2, "calibration_window": 64, "largest_ratio": 1.0000001})
    monkeypatch.setattr("exporters.tensorrt.qdq.graph_perplexity", lambda folder, *_: {"perplexity": 20.0 + (folder.name == "qdq")})
    with pytest.raises(GateError, match=r"from 20.00 to 21.00, 1.05 times"):
        built(sparse_onnx, tmp_path / "engine", recipe, texts=texts)


def test_int8_of_which_nothing_is_left_is_refused(sparse_onnx, tmp_path, texts, monkeypatch, rtx):
    recipe = RTX.model_copy(update={"precision": "int8", "calibration_windows": 2, "calibration_window": 64})
    monkeypatch.setattr("exporters.tensorrt.smooth.LARGEST_ERROR", -1.0)
    with pytest.raises(TrimlineError, match="int8 has a scale for none of the 21 products"):
        built(sparse_onnx, tmp_path / "engine", recipe, texts=texts)


def test_int8_without_a_text_or_a_tokenizer(sparse_onnx, tmp_path, texts, rtx):
    recipe = RTX.model_copy(update={"precision": "int8"})
    with pytest.raises(TrimlineError, match="none was named"):
        built(sparse_onnx, tmp_path / "a", recipe)
    bare = Path(shutil.copytree(sparse_onnx, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(TrimlineError, match=r"no tokenizer\.json"):
        built(bare, tmp_path / "b", recipe, texts=texts)


def test_a_graph_of_foreign_operators_is_refused(tmp_path, rtx):
    node = onnx.helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    value = onnx.helper.make_tensor_value_info("x", 1, [4, 4])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [])), tmp_path / "model.onnx")
    (tmp_path / "export.json").write_text('{"precision": "fp32"}')
    with pytest.raises(TrimlineError, match=r"com\.microsoft.*lowering: portable"):
        built(tmp_path, tmp_path / "engine")
    with pytest.raises(TrimlineError, match=r"no model\.onnx"):
        built(tmp_path / "engine", tmp_path / "other")


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_graph_of_a_precision_that_no_engine_is_built_from(sparse_onnx, tmp_path, precision, rtx):
    folder = Path(shutil.copytree(sparse_onnx, tmp_path / "other"))
    (folder / "export.json").write_text(json.dumps({"precision": precision}))
    with pytest.raises(TrimlineError, match=rf"other was exported in {precision}, and TensorRT .* fp32 and fp16 graphs only"):
        built(folder, tmp_path / "engine")


def test_what_the_builder_refuses_is_a_sentence(sparse_onnx, tmp_path, rtx):
    broken = Path(shutil.copytree(sparse_onnx, tmp_path / "broken"))
    model = onnx.load(broken / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "NoSuchOperator"
    onnx.save(model, broken / "model.onnx")
    with pytest.raises(TrimlineError, match=r"tensorrt_rtx builds no engine from .*NoSuchOperator"):
        built(broken, tmp_path / "engine")


def test_a_capability_that_rtx_does_not_know(sparse_onnx, tmp_path, rtx):
    with pytest.raises(TrimlineError, match=r"9\.0"):
        built(sparse_onnx, tmp_path / "engine", RTX.model_copy(update={"compute_capabilities": ("9.0",)}))


def test_weights_that_memory_does_not_hold_are_refused(sparse_onnx, tmp_path, rtx):
    called = trimline("build", str(sparse_onnx), "--output", str(tmp_path / "engine"), "--builder", "tensorrt_rtx", "--memory", "100KB")
    assert_refused(called, "with all weights in memory")
    assert not (tmp_path / "engine").exists()


@pytest.mark.slow
def test_an_engine_on_a_full_disk(sparse_onnx, tmp_path, rtx):
    asked = ("build", sparse_onnx, "--builder", "tensorrt_rtx", "--threads", 1, "-o")
    with largest_file(20_000):
        assert_refused(trimline(*asked, tmp_path / "engine"), "grew beyond what a limit or the file system allows")
    assert not list(tmp_path.iterdir())
    assert trimline(*asked, tmp_path / "whole").code == 0
    for share in (0.03, 0.5, 0.85):
        with disk(tmp_path / "disk", max(4, int(size_of(tmp_path / "whole") * share))) as place:
            assert_refused(trimline(*asked, place / "engine"), "disk is full")
            assert not list(place.iterdir())


def test_a_process_that_dies_is_a_sentence(tmp_path, monkeypatch):
    """As TensorRT's runtime does without a driver: the child is ended by a segmentation fault."""
    (tmp_path / "dies.py").write_text(
        "import os, signal, sys\nprint('[E] last words', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TrimlineError, match=r"was ended by SIGSEGV: last words.*doctor"):
        build_in_child({"builder": "tensorrt", "onnx": "x"}, tmp_path / "log", module="dies")


def test_a_disk_that_the_engine_fills_is_no_fault_of_the_graph(tmp_path, monkeypatch):
    (tmp_path / "fills.py").write_text(
        "from exporters.tensorrt import worker\n"
        "def build(request): raise OSError(28, 'No space left on device', request['engine'])\n"
        "worker.build = build\nworker.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(OSError, match="No space left") as caught:
        build_in_child({"builder": "tensorrt", "onnx": "x", "engine": "out/model.engine"}, tmp_path / "log", module="fills")
    assert explain(caught.value)[0].startswith("The disk is full")


def test_chatter_is_dropped_but_for_sparsity(tmp_path, monkeypatch):
    lines = ["[X] Tactic: 0x1 Time: 1", "[X] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: a", "[V] kept"]
    (tmp_path / "talks.py").write_text(
        "from exporters.tensorrt import worker\n"
        f"def build(request): print({chr(10).join(lines)!r}); return {{}}\n"
        "worker.build = build\nworker.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert build_in_child({"builder": "tensorrt", "onnx": "x"}, tmp_path / "log", module="talks") == {}
    assert [line.strip() for line in log_lines(tmp_path / "log")] == lines[1:]


@pytest.mark.parametrize(("devices", "what"), [(None, "no NVIDIA driver"), ([], "driver but no GPU")])
def test_tensorrt_without_a_gpu_is_refused_before_it_is_imported(devices, what):
    with pytest.raises(TrimlineError, match=what):
        demand_builder("tensorrt", lambda: devices)
    assert "tensorrt" not in sys.modules


def test_a_builder_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("exporters.tensorrt.builders.importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrimlineError, match=r"tensorrt is not installed.*trimline\[tensorrt\]"):
        demand_builder("tensorrt", lambda: ["a GPU"])
    with pytest.raises(TrimlineError, match="tensorrt-rtx-cu12-libs"):
        demand_builder("tensorrt_rtx")


def test_an_engine_does_not_open_without_a_gpu(tmp_path):
    if cuda_devices():
        pytest.skip("a GPU is here")
    (tmp_path / "build.json").write_text('{"builder": "tensorrt"}')
    with pytest.raises(TrimlineError, match="this machine has no NVIDIA driver"):
        EngineDecoder(tmp_path)
    with pytest.raises(TrimlineError, match=r"no build\.json"):
        EngineDecoder(tmp_path / "other")


def test_a_timing_cache_is_read_and_added_to(sparse_onnx, tmp_path, monkeypatch, rtx):
    def child(request: dict, log: Path) -> dict:
        log.write_text("[I] nothing\n")
        seen.append(Path(request["timing_cache"]).read_bytes() if Path(request["timing_cache"]).exists() else b"")
        Path(request["timing_cache"]).write_bytes(seen[-1] + b"more")
        return {"version": "1", "flags": [], "layers": 1, "bytes": 0, "inspected": False, "seconds": {}}

    seen: list[bytes] = []
    monkeypatch.setattr(stage, "build_in_child", child)
    for name in ("a", "b"):
        built(sparse_onnx, tmp_path / name, timing_cache=tmp_path / "kept")
    assert seen == [b"", b"more"]
    assert (tmp_path / "kept").read_bytes() == b"moremore"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "kept"]


def test_a_timing_cache_that_cannot_be_kept_is_refused_before_the_build(sparse_onnx, tmp_path, monkeypatch, rtx):
    monkeypatch.setattr(stage, "build_in_child", lambda *_: pytest.fail("it was built"))
    with pytest.raises(TrimlineError, match="is a folder, and kernel timings are kept in a file"):
        built(sparse_onnx, tmp_path / "a", timing_cache=tmp_path)
    with pytest.raises(TrimlineError, match="no folder .*nowhere to keep kernel timings in"):
        built(sparse_onnx, tmp_path / "b", timing_cache=tmp_path / "nowhere" / "kept")


def test_the_command(sparse_onnx, tmp_path, rtx):
    called = trimline("build", sparse_onnx, "-o", tmp_path / "e", "--builder", "tensorrt_rtx", "--request", "16/2", "--json")
    assert called.code == 0, called.stderr
    assert called.answer["flags"] == ["SPARSE_WEIGHTS"]
    assert "Built, not run" in called.stderr
    assert_refused(trimline("build", sparse_onnx, "-o", tmp_path / "f", "--request", "many"), "'many' is no request")
    assert_refused(trimline("build", sparse_onnx, "-o", tmp_path / "g", "--capability", "8.6"), "compute_capabilities")
    if not cuda_devices():
        assert_refused(trimline("build", sparse_onnx, "-o", tmp_path / "h"), "no NVIDIA driver")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]
