"""Runtimes other than ONNX Runtime on the processor: what they refuse here, and torch against ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.machine.ceilings import measure_gpu_ceilings
from benchmarks.runtimes.llama_cpp import CONTEXT, LlamaDecoder
from benchmarks.runtimes.names import FORMS, ON_GPU
from benchmarks.runtimes.opening import opener
from benchmarks.runtimes.torch_decoder import TorchDecoder, make_sparse
from benchmarks.studies.precisions.llama_folder import llama_folder
from benchmarks.timing.subject import Subject
from benchmarks.timing.worker import Worker
from exporters.folder import EXPORT
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError
from pipeline.common.files import write_json
from pipeline.live.loading import load_model
from tests.exporters.tensorrt.conftest import two_four
from tests.tiny import tiny_model


class StandIn:
    """As much of llama-cpp-python's model as is timed."""

    def reset(self) -> None:
        """Forgets nothing, having read nothing."""

    def eval(self, tokens: list[int]) -> None:
        """Reads none of them."""


NO_GPU = pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("checkpoint") / "model")


def test_torch_with_its_cache_computes_what_torch_without_it_computes(checkpoint):
    ids = np.arange(4, 20)[None]
    decoder = TorchDecoder(checkpoint, 1, device="cpu")
    first, past = decoder.run(ids[:, :9], decoder.empty(1, 16))
    found = [first]
    for at in range(9, 16):
        logits, past = decoder.run(ids[:, at : at + 1], past)
        found.append(logits)
    with torch.inference_mode():
        whole = load_model(checkpoint, dtype=torch.float32)(torch.from_numpy(ids)).logits
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-5, rtol=0)


def test_only_two_four_projections_become_sparse(checkpoint, tmp_path):
    sparse = two_four(tiny_model("llama", tmp_path / "sparse"))
    shapes = []

    def convert(weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[0] == 32:  # k and v: as torch refuses what is too small
            raise RuntimeError("too small")
        shapes.append(tuple(weight.shape))
        return weight * 2

    model = load_model(sparse, dtype=torch.float32)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    assert make_sparse(model, sparse, convert) == len(shapes) == 4 * 5
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight, 2 * before)
    assert make_sparse(load_model(checkpoint, dtype=torch.float32), checkpoint, convert) == 0  # a dense model stays dense

    def refuse(weight: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("only compressible shapes")

    with pytest.raises(TrimlineError, match="No projection .* only compressible shapes"):
        make_sparse(load_model(sparse, dtype=torch.float32), sparse, refuse)


def test_a_checkpoint_is_a_subject(checkpoint):
    subject = Subject.read("dense", checkpoint, "torch")
    assert (subject.precision, subject.lowering) == ("fp32", "torch")
    assert subject.as_record()["weight_file_bytes"] == (checkpoint / "model.safetensors").stat().st_size


def test_a_gguf_export_is_no_subject_and_llama_cpps_own_folder_is_one(checkpoint, tmp_path):
    """The second is what ``benchmarks.studies.precisions`` makes, and times by what is in the folder."""
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    llama_folder(tmp_path / "any.gguf", checkpoint, tmp_path)
    assert Subject.read("llama", tmp_path).lowering == "llama.cpp"
    write_json(tmp_path / EXPORT, {"format": "gguf", "architecture": "llama", "precision": "fp16", "quantise": None})
    with pytest.raises(TrimlineError, match="is an export of format gguf, which onnxruntime does not run"):
        Subject.read("exported", tmp_path)
    subject = Subject.read("exported", tmp_path, "llama_cpp")
    assert (subject.precision, subject.lowering, subject.logits) == ("fp16", "llama.cpp", "last")
    assert subject.widths.weight == 4 / subject.geometry.total_parameters()  # bytes of the file
    write_json(tmp_path / EXPORT, {"format": "onnx", "precision": "fp32"})
    with pytest.raises(TrimlineError, match="is an export of format onnx, which llama_cpp does not run"):
        Subject.read("exported", tmp_path, "llama_cpp")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_generator_of_genai_takes_as_many_passes_as_it_is_asked_for(exported, batch):
    """Random weights end a text at any token; that must not end what is timed."""
    worker = Worker()
    assert "problem" not in worker.answer({"do": "load", "folder": str(exported["pruned"]), "threads": 1, "runtime": "onnxruntime_genai"})
    asked = {"do": "run", "prompt": 6, "output": 40, "batch": batch, "vocab": 128}
    found = [worker.answer(asked | {"seed": seed}) for seed in (0, 1)]
    assert [len(sample["gaps"]) for sample in found] == [39, 39]
    assert min(min(sample["gaps"]) for sample in found) > 0


def test_a_step_of_genai_is_one_more_token(exported):
    decoder = opener("onnxruntime_genai", exported["dense"])(exported["dense"], 1)
    past = decoder.empty(2, 9)
    _, past = decoder.run(np.arange(8).reshape(2, 4), past)
    assert past.token_count() == 5
    _, past = decoder.run(np.zeros((2, 1), np.int64), past)
    assert past.token_count() == 6


def test_llama_cpp_that_is_not_installed_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # its import fails from here on
    answer = Worker().answer({"do": "load", "folder": str(tmp_path), "threads": 1})
    assert "llama-cpp-python is not installed" in answer["problem"]
    assert "pip install llama-cpp-python" in answer["remedy"]


@pytest.mark.parametrize(("batch", "capacity", "words"), [(2, 8, "one row, and 2"), (1, 65, "opened for 64 tokens, and 65")])
def test_what_llama_cpp_is_not_timed_with(tmp_path, monkeypatch, batch, capacity, words):
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=lambda *_, **__: StandIn()))
    decoder = LlamaDecoder(tmp_path, 1, context=64)
    decoder.empty(1, 64)
    with pytest.raises(TrimlineError, match=words):
        decoder.empty(batch, capacity)


@pytest.mark.parametrize(
    ("workloads", "context"),
    [(["128/17"], 145), (["128/128", "512/128", "1024/1024", "2048/128", "128/2048"], 2176), ([], CONTEXT)],
)
def test_llama_cpp_is_opened_for_what_will_be_timed(tmp_path, monkeypatch, workloads, context):
    """A prompt is one batch, so that as many tokens as the context holds are read in one pass."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    seen: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=lambda path, **given: seen.update(given) or StandIn()))
    requests = [tuple(map(int, workload.split("/"))) for workload in workloads]
    worker = Worker()
    asked = {"do": "load", "folder": str(tmp_path), "threads": 1, "requests": [(*request, 1) for request in requests]}
    assert "problem" not in worker.answer(asked)
    assert seen["n_ctx"] == seen["n_batch"] == seen["n_ubatch"] == context
    for prompt, output in requests:
        answer = worker.answer({"do": "run", "prompt": prompt, "output": output, "batch": 1, "vocab": 9, "seed": 0})
        assert len(answer["gaps"]) == output - 1


@NO_GPU
@pytest.mark.parametrize("runtime", sorted(ON_GPU))
def test_without_a_gpu_every_gpu_runtime_is_a_sentence(runtime, checkpoint, tmp_path):
    (tmp_path / "build.json").write_text('{"builder": "tensorrt"}')
    folder = checkpoint if FORMS[runtime] == "checkpoint" else tmp_path
    answer = Worker().answer({"do": "load", "folder": str(folder), "threads": 1, "runtime": runtime})
    assert "CUDA device" in answer["problem"] or "no NVIDIA driver" in answer["problem"]
    assert answer["remedy"]


@NO_GPU
def test_ceilings_of_a_gpu_that_is_not_there():
    with pytest.raises(TrimlineError, match="no CUDA device"):
        measure_gpu_ceilings()
    with pytest.raises(TrimlineError, match="CUDA devices only"):
        TorchDecoder(Path("anywhere"), 1, sparse=True, device="cpu")


@pytest.mark.gpu
def test_semi_structured_weights_compute_the_same(tmp_path):
    folder = two_four(tiny_model("llama", tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64))
    ids = np.arange(4, 68)[None]
    plain, sparse = (opener(name, device="cuda")(folder, 1).run(ids, None)[0].float() for name in ("torch", "torch_2_4"))
    torch.testing.assert_close(sparse, plain, atol=2e-2 * plain.abs().max().item(), rtol=0)


@pytest.mark.gpu
def test_ceilings_of_a_gpu():
    found = measure_gpu_ceilings(repeats=2)
    assert min(found["bandwidth"]) > 1e10
    assert min(found["rate"]) > 1e12
