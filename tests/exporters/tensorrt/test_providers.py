"""Opening ONNX Runtime's GPU providers, and what is refused; what needs a GPU is marked."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from exporters.onnx import sparsity
from exporters.onnx.files import save_graph
from exporters.onnx.lowering.fused import lower_fused
from exporters.onnx.lowering.last_position import keep_last_position
from exporters.onnx.lowering.portable import lower_portable
from exporters.onnx.running import providers
from exporters.onnx.running.device import CHAINS
from exporters.onnx.running.placement import RECORD, SHAPE_OPERATORS, check_places, places
from exporters.onnx.running.providers import open_session, options_of
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.runtime import CPU, CUDA, TENSORRT, load_libraries
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.gates import gate_tokens
from tests.exporters.models import uneven

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("providers")
    save_graph(lower_fused(Checkpoint(uneven("llama", place)), "fp32", Events()), place, "fused")
    return place


@pytest.fixture
def driver(monkeypatch):
    """A GPU, as far as the driver is asked."""
    monkeypatch.setattr(providers, "cuda_devices", lambda: ["a GPU"])


@pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_without_a_gpu_it_is_refused_before_anything_is_loaded(folder, provider):
    with pytest.raises(TrimlineError, match=f"{CHAINS[provider][0]} needs a GPU, and this machine has no NVIDIA driver"):
        OnnxDecoder(folder, 1, provider)


def test_a_build_without_the_provider_is_refused(folder, driver):
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build has the CUDA provider")
    with pytest.raises(TrimlineError, match=f"{CUDA} was asked for and this build"):
        open_session(folder / "model.onnx", "cuda", 1)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_falls_back_is_refused(sparse_onnx, monkeypatch, driver, provider):
    """As onnxruntime-gpu does without a GPU: the provider is listed, and the session would quietly run without it."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(providers, "load_libraries", lambda _: None)
    with pytest.raises(TrimlineError, match=f"{CHAINS[provider][0]} was asked for and it did not start"):
        open_session(sparse_onnx / "model.onnx", provider, 1)


def test_a_fused_graph_has_no_profile_for_tensorrt(folder, monkeypatch, driver):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(providers, "load_libraries", lambda _: None)
    with pytest.raises(TrimlineError, match=r"free axis.* Give a folder that Trimline exported with lowering: portable\.$"):
        OnnxDecoder(folder, 1, "tensorrt")


def test_where_nodes_run_is_known_and_judged(folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    found = places(onnxruntime.InferenceSession(folder / "model.onnx", options, providers=[CPU]))
    assert {provider for provider, _ in found} == {CPU}
    assert "GroupQueryAttention" in {operator for _, operator in found}
    check_places(found, (CPU,))
    with pytest.raises(TrimlineError, match=r"leaves .*GroupQueryAttention.* to the processor"):
        check_places(found, (CUDA,))
    check_places([(CUDA, "MatMul"), (CPU, "Shape"), (CPU, "Gather")], (CUDA,))


@pytest.mark.parametrize("lower", [lower_fused, lower_portable])
def test_what_is_computed_from_shapes_alone_may_stay_on_the_processor(lower, tmp_path):
    """The CUDA provider leaves such nodes there by its own choice; an operator that is not known would be a false refusal."""
    graph = lower(Checkpoint(uneven("llama", tmp_path)), "fp32", Events())
    keep_last_position(graph)
    save_graph(graph, tmp_path, "any")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    known, found = {"", *(tensor.name for tensor in model.graph.initializer)}, set()
    for node in model.graph.node:
        if node.op_type in {"Shape", "Size"} or known.issuperset(node.input):
            known.update(node.output)
            found.add(node.op_type)
    assert {"Shape", "Neg"} <= found <= SHAPE_OPERATORS


def test_libraries_of_pip_wheels_are_loaded_before_a_session_is_opened(folder, driver, monkeypatch):
    import onnxruntime

    told = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: told.append("cuda"), raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: told.append("session") or SimpleNamespace(get_providers=list))
    for provider in ("cpu", "cuda"):
        with pytest.raises(TrimlineError, match="did not start"):
            open_session(folder / "model.onnx", provider, 1)
    assert told == ["session", "cuda", "session"]
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())
    load_libraries(CHAINS["tensorrt"])
    assert told[3:] == ["cuda"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # its import fails from here on
    with pytest.raises(TrimlineError, match=rf"{TENSORRT} runs on the libraries of Python's package tensorrt.*trimline\[tensorrt\]"):
        open_session(folder / "model.onnx", "tensorrt", 1)
    assert told[4:] == ["cuda"], "no session was opened"


def test_an_onnxruntime_without_preloading_goes_on(folder, driver, monkeypatch):
    import onnxruntime

    told = []
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: told.append("session") or SimpleNamespace(get_providers=list))
    with pytest.raises(TrimlineError, match="did not start"):
        open_session(folder / "model.onnx", "cuda", 1)
    assert told == ["session"]


def test_sparse_kernels_are_allowed_where_the_graph_is_two_four(sparse_onnx, monkeypatch):
    graph = sparse_onnx / "model.onnx"
    (tensorrt, cuda) = options_of("tensorrt", graph)
    assert (tensorrt["trt_sparsity_enable"], cuda) == ("True", {"use_tf32": "0"})
    monkeypatch.setattr(sparsity, "check_two_four", lambda _: {"complies": False})
    assert options_of("tensorrt", graph)[0]["trt_sparsity_enable"] == "False"
    assert options_of("cuda", graph) == [{"use_tf32": "0"}]
    assert options_of("cpu", graph) == [{}]


def test_the_tensorrt_provider_gets_one_profile_for_prompts_and_steps(sparse_onnx):
    options = options_of("tensorrt", sparse_onnx / "model.onnx")[0]
    shapes = {kind: dict(part.split(":") for part in options[f"trt_profile_{kind}_shapes"].split(",")) for kind in ("min", "opt", "max")}
    assert [shapes[kind]["input_ids"] for kind in ("min", "opt", "max")] == ["1x1", "1x1", "8x512"]
    assert [shapes[kind]["past_key_values.2.key"] for kind in ("min", "max")] == ["1x2x0x16", "8x2x1024x16"]
    assert shapes["max"]["attention_mask"] == "8x1536"
    longer = options_of("tensorrt", sparse_onnx / "model.onnx", [(2048, 129, 1), (512, 1, 2)])[0]
    assert "input_ids:2x2048" in longer["trt_profile_max_shapes"]


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_on_a_gpu_it_computes_what_the_processor_computes(sparse_onnx, provider):
    if provider == "tensorrt" and not (found := str(pytest.importorskip("tensorrt").__version__)).startswith("10."):
        pytest.skip(f"ONNX Runtime's provider links to TensorRT 10, and {found} is installed")
    ids = gate_tokens(128, rows=2, length=16).numpy()
    expected = OnnxDecoder(sparse_onnx, 1).logits(ids)
    bound = OnnxDecoder(sparse_onnx, 1, provider, served=[(16, 8, 2)])
    np.testing.assert_allclose(bound.logits(ids), expected, atol=1e-2)
    np.testing.assert_array_equal(bound.greedy(ids, 8), OnnxDecoder(sparse_onnx, 1).greedy(ids, 8))
