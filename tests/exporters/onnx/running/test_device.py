"""Where sessions compute and their tensors lie. A stand-in for the GPU lets the same code run here; what needs a real one is marked."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from exporters.onnx.files import save_graph
from exporters.onnx.gate.gate import gate_onnx
from exporters.onnx.lowering.fused import lower_fused
from exporters.onnx.lowering.portable import lower_portable
from exporters.onnx.running import session
from exporters.onnx.running.device import Memory, fetch, fetch_positions
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.runtime import CUDA
from exporters.onnx.stage import choose_lowering, export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import gate_tokens
from tests.exporters.models import OPTIONS, stock, uneven
from tests.exporters.stand_in_gpu import StandInGpu

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
ON_GPU = RunOptions(threads=1, device="cuda")
LOWER = {"fused": lower_fused, "portable": lower_portable}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint(uneven("llama", tmp_path_factory.mktemp("device")))


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """By lowering, graphs that give the logits of all positions."""
    root = tmp_path_factory.mktemp("graphs")
    for name, lower in LOWER.items():
        (root / name).mkdir()
        save_graph(lower(checkpoint, "fp32", Events()), root / name, name)
    return {name: root / name for name in LOWER}


@pytest.fixture
def gpu(monkeypatch):
    return StandInGpu(monkeypatch)


@pytest.mark.parametrize("lowering", LOWER)
def test_what_is_bound_lies_on_the_gpu_and_computes_the_same(folders, lowering, gpu):
    here, there = OnnxDecoder(folders[lowering], 1), OnnxDecoder(folders[lowering], 1, "cuda")
    ids, found = gate_tokens(128, rows=2, length=16).numpy(), {}
    for decoder in (here, there):
        past, logits = decoder.empty(2), []
        for start, end in [(0, 7), *((at, at + 1) for at in range(7, 16))]:
            said, past = decoder.step(ids[:, start:end], past)
            logits.append(said)
        found[decoder] = np.concatenate(logits, 1)
        assert past.length == 16
    np.testing.assert_array_equal(found[there], found[here])
    np.testing.assert_allclose(found[there], here.logits(ids), atol=1e-5)
    gpu.inputs.clear()
    gpu.outputs.clear()
    there.step(ids, there.empty(2))
    assert set(gpu.inputs) == {value.name for value in there.session.get_inputs()}
    assert set(gpu.outputs) == {value.name for value in there.session.get_outputs()}
    assert all(lies_there for _, lies_there in gpu.inputs.values())
    assert all(where == "cuda" or where[1] for where in gpu.outputs.values())
    assert gpu.outputs["logits"] == "cuda"


def test_a_fused_graphs_cache_stays_where_it_is(folders, gpu):
    """Past and present are one tensor, the same at every step until it is full."""
    decoder, ids = OnnxDecoder(folders["fused"], 1, "cuda"), gate_tokens(128, rows=1, length=80).numpy()
    _, past = decoder.step(ids[:, :4], decoder.empty(1, 8))  # and as many as are spare
    caches = {name: where for name, where in gpu.inputs.items() if name.startswith("past")}
    assert len(caches) == 6
    for at in range(4, 72):
        _, past = decoder.step(ids[:, at : at + 1], past)
    assert {name: gpu.inputs[name] for name in caches} == caches
    assert {name: gpu.outputs[name.replace("past_key_values", "present")] for name in caches} == caches
    kept = list(past.buffers.values.values())  # whose memory the larger one would be given else
    logits, _ = decoder.step(ids[:, 72:73], past)
    assert not {gpu.inputs[name] for name in caches} & set(caches.values())
    assert all(lies_there for _, lies_there in (gpu.inputs[name] for name in caches))
    assert [value.shape()[2] for value in kept] == [72] * 6
    np.testing.assert_allclose(logits[:, -1], decoder.logits(ids[:, :73])[:, -1], atol=1e-5)


@pytest.mark.parametrize("lowering", LOWER)
def test_text_brings_back_the_logits_that_it_is_chosen_by_and_no_others(folders, lowering, gpu, monkeypatch):
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
    wanted = np.concatenate([OnnxDecoder(folders[lowering], 1).greedy([prompt], 10) for prompt in prompts])
    monkeypatch.setattr(session, "fetch", lambda _: pytest.fail("all logits were fetched"))
    np.testing.assert_array_equal(OnnxDecoder(folders[lowering], 1, "cuda").greedy(prompts, 10), wanted)


def test_a_portable_past_can_be_continued_again(folders, gpu):
    ids, decoder = gate_tokens(128, rows=1, length=9).numpy(), OnnxDecoder(folders["portable"], 1, "cuda")
    _, past = decoder.step(ids[:, :8], decoder.empty())
    first, again = (decoder.step(ids[:, 8:], past)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_fp32_is_computed_in_fp32(folders, gpu):
    OnnxDecoder(folders["fused"], 1, "cuda")
    assert gpu.options == [[{"use_tf32": "0"}]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_numbers_go_there_and_come_back(dtype, provider, gpu):
    array = np.arange(12).reshape(2, 3, 2).astype(dtype)
    value = Memory(provider).put(array)
    assert value.data_type() == {"float32": "tensor(float)"}.get(array.dtype.name, f"tensor({array.dtype.name})")
    assert (value.data_ptr() == array.ctypes.data) is (provider == "cpu")
    np.testing.assert_array_equal(fetch(value), array)
    np.testing.assert_array_equal(fetch_positions(value, [2, 0]), [[4, 5], [6, 7]])
    nothing = np.zeros((2, 3, 0, 4), dtype)
    assert fetch(Memory(provider).put(nothing)).shape == nothing.shape


def test_what_a_gpu_leaves_to_the_processor_is_refused(folders, gpu):
    gpu.left |= {"GroupQueryAttention", "Sigmoid"}
    with pytest.raises(TrimlineError, match=f"{CUDA} was asked for and it leaves GroupQueryAttention, Sigmoid to the processor"):
        OnnxDecoder(folders["fused"], 1, "cuda")


def test_a_checkpoint_is_gated_on_the_device(tmp_path, gpu):
    """The stage's own gate, its cache where the graph computes."""
    checkpoint = stock("llama", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    export(checkpoint, ExportSlice(lowering="fused"), OPTIONS, out, Events())
    gpu.outputs.clear()
    record = gate_onnx(checkpoint, out, ExportSlice(lowering="fused"), ON_GPU, Events())
    assert all(check["passed"] for check in record["checks"].values())
    assert len(gpu.outputs) == 5
    assert all(where == "cuda" or where[1] for where in gpu.outputs.values())


@pytest.mark.parametrize(("precision", "lowering"), [("fp32", "portable"), ("int4", "portable"), ("fp16", "fused"), ("bf16", "fused")])
def test_auto_takes_the_fused_graph_where_the_gpu_has_its_attention(checkpoint, precision, lowering):
    told: list[Event] = []
    recipe = ExportSlice(precision=precision)
    assert choose_lowering(checkpoint, recipe, ON_GPU, Events(told.append)) == lowering
    assert choose_lowering(checkpoint, recipe, OPTIONS, Events()) == "fused"
    assert bool(told) is (lowering == "portable")


def test_opening_a_graph_brings_no_torch(folders):
    """A process whose memory is measured would hold it."""
    code = "import sys; from pathlib import Path; from exporters.onnx.running.session import OnnxDecoder as D; "
    code += "import numpy; d = D(Path(sys.argv[1]), 1); d.run(numpy.ones((1, 4), numpy.int64), d.empty()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(folders["fused"])], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("make", [uneven, stock])
def test_on_a_gpu_the_fused_graph_is_gated_against_its_checkpoint(make, precision, tmp_path):
    checkpoint, out = make("llama", tmp_path), tmp_path / "out"
    out.mkdir()
    export(checkpoint, ExportSlice(precision=precision), ON_GPU, out, Events())  # gates it on the GPU
    record = gate_onnx(checkpoint, out, ExportSlice(precision=precision), ON_GPU, Events())
    assert record["lowering"] == "fused"
    assert record["perplexity"]["passed"]
    assert all(check["passed"] for check in record["checks"].values())


@pytest.mark.gpu
def test_on_a_gpu_the_cache_of_a_fused_graph_stays_where_it_is(checkpoint, tmp_path):
    save_graph(lower_fused(checkpoint, "fp16", Events()), tmp_path, "fused")
    decoder, here = OnnxDecoder(tmp_path, 1, "cuda"), OnnxDecoder(tmp_path, 1)
    ids = gate_tokens(128, rows=1, length=80).numpy()
    (_, past), (_, past_here) = (one.step(ids[:, :4], one.empty(1, 8)) for one in (decoder, here))
    values = dict(past.buffers.values)
    assert {value.device_name() for value in values.values()} == {"cuda"}
    for at in range(4, 72):
        logits, past = decoder.run(ids[:, at : at + 1], past)
        wanted, past_here = here.step(ids[:, at : at + 1], past_here)
        assert logits.device_name() == "cuda"
        np.testing.assert_allclose(fetch(logits), wanted, atol=2e-2 * np.abs(wanted).max())
    assert {name: value.data_ptr() for name, value in past.buffers.values.items()} == {n: v.data_ptr() for n, v in values.items()}
    decoder.run(ids[:, 72:73], past)
    assert all(past.buffers.values[name].data_ptr() != value.data_ptr() for name, value in values.items()), "the cache has grown"
