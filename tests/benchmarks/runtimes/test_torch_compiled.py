"""torch on a processor, eager and compiled: equal logits, one graph per shape, and nothing compiled while a clock runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.runtimes.torch_compiled
import benchmarks.stage
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.runtimes.opening import opener
from benchmarks.runtimes.runs_here import runs_here
from benchmarks.runtimes.torch_compiled import CompiledDecoder, demand_compiler
from benchmarks.runtimes.torch_decoder import TorchDecoder
from benchmarks.stage import benchmark
from benchmarks.timing.child import BenchmarkWorker
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import CONTROL, DENSE, Sample, time_workloads
from benchmarks.timing.worker import Worker
from pipeline.architecture.profile import Profile
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from tests.end_to_end.scenario import InProcess
from tests.exporters.models import stock
from tests.pipeline.rebuild.cases import Choice, rebuilt_tiny
from tests.tiny import tiny_model

IDS = np.arange(4, 20)[None]


def without_first_attention(choice: Choice) -> None:
    choice.kv = [(), (1, 3), (0, 1, 2)]
    choice.ffn = [tuple(range(32)), (), tuple(range(5, 69))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Blocks alike, and blocks that differ in widths and KV groups, the first without attention."""
    root = tmp_path_factory.mktemp("models")
    return {
        "alike": stock("llama", root),
        "uneven": rebuilt_tiny(root, "qwen3", without_first_attention, Profile.FREE, num_hidden_layers=3),
    }


@pytest.fixture(autouse=True)
def _no_trace(caplog: pytest.LogCaptureFixture) -> None:
    """torch writes thousands of records about its tracing, for whoever listens; pytest does."""
    caplog.set_level(logging.WARNING, logger="torch.__trace")


def answers(decoder: TorchDecoder, ids: np.ndarray, prompt: int = 9) -> torch.Tensor:
    """Logits of a prompt pass and of every step after it."""
    past = decoder.empty(len(ids), ids.shape[1] + 1)
    pieces = [ids[:, :prompt], *(ids[:, at : at + 1] for at in range(prompt, ids.shape[1]))]
    found = []
    for piece in pieces:
        logits, past = decoder.run(np.ascontiguousarray(piece), past)
        found.append(logits.clone())
    return torch.cat(found, 1)


@pytest.mark.parametrize("kind", ["alike", "uneven"])
def test_compiled_logits_equal_eager_ones_and_no_step_compiles_anew(folders, kind):
    """The tracing is torch's own; what the traced graph is compiled by, only the slow test runs."""
    eager, compiled = TorchDecoder(folders[kind], 1), CompiledDecoder(folders[kind], 1, backend="eager")
    before = compiled.graphs
    torch.testing.assert_close(answers(compiled, IDS), answers(eager, IDS), atol=1e-5, rtol=0)
    assert compiled.graphs == before + 2  # seven steps: one graph for the prompt, one for all of them
    other = IDS[:, ::-1].copy()
    torch.testing.assert_close(answers(compiled, other), answers(eager, other), atol=1e-5, rtol=0)
    assert compiled.graphs == before + 2


@pytest.mark.slow
def test_every_shape_has_its_graphs_and_keeps_them(folders):
    compiled = CompiledDecoder(folders["alike"], 1, backend="eager")
    before = compiled.graphs
    answers(compiled, IDS)
    answers(compiled, np.repeat(IDS[:, :12], 2, 0), prompt=5)
    assert compiled.graphs == before + 4
    answers(compiled, IDS)
    assert compiled.graphs == before + 4


def test_a_request_says_what_it_compiled(folders):
    worker = Worker(lambda folder, threads: CompiledDecoder(folder, threads, backend="eager"))
    worker.load(str(folders["alike"]), 1)
    request = {"prompt": 6, "output": 4, "batch": 1, "vocab": 128}
    assert [worker.run(**request, seed=seed)["compiled"] for seed in (1, 2)] == [2, 0]


def test_what_torch_cannot_compile_is_a_sentence(folders):
    def refuses(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise RuntimeError("no such kernel")

    decoder = CompiledDecoder(folders["alike"], 1, backend=refuses)  # type: ignore[arg-type]
    with pytest.raises(TrimlineError, match=r"torch\.compile cannot compile .*no such kernel"):
        answers(decoder, IDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alike", "uneven"])
def test_inductors_logits_equal_eager_ones(folders, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = CompiledDecoder(folders[kind], 1)
    before = compiled.graphs
    torch.testing.assert_close(answers(compiled, IDS), answers(TorchDecoder(folders[kind], 1), IDS), atol=1e-4, rtol=0)
    assert compiled.graphs == before + 2


@pytest.mark.slow
def test_a_real_worker_compiles_once_and_leaves_nothing(folders):
    with BenchmarkWorker("dense") as child:
        child.ask("load", folder=str(folders["alike"]), threads=1, runtime="torch_compile")
        request = {"prompt": 6, "output": 4, "batch": 1, "vocab": 128}
        first, second = (child.ask("run", **request, seed=seed) for seed in (1, 2))
        written = Path(child._compiled.name)
        assert list(written.rglob("*.so"))
    assert (first["compiled"], second["compiled"]) == (2, 0)
    assert first["prefill"] > 10 * second["prefill"]
    assert not written.exists()


class Late:
    """A model that compiles whenever it is run."""

    def open(self) -> None: ...

    def run(self, workload: Workload, seed: int) -> Sample:
        return Sample(1.0, [], 0.0, compiled=2)


def test_a_sample_that_holds_compiling_is_refused():
    with pytest.raises(TrimlineError, match="compiled 2 graphs while 512/1 was being timed"):
        time_workloads({DENSE: Late(), CONTROL: Late()}, BenchmarkSlice())


def test_without_a_compiler_there_is_one_sentence(monkeypatch, folders):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrimlineError, match="there is no no-such-compiler here"):
        demand_compiler()
    answer = Worker().answer({"do": "load", "folder": str(folders["alike"]), "threads": 1, "runtime": "torch_compile"})
    assert "needs a C++ compiler" in answer["problem"]
    found = {line.runtime: line.lacks for line in runs_here()}
    assert "needs a C++ compiler" in found["torch_compile"]
    assert found["torch"] == ""


def test_the_compiler_is_the_one_that_inductor_calls(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    asked: list[str] = []
    monkeypatch.setattr(benchmarks.runtimes.torch_compiled.shutil, "which", lambda name: asked.append(name) or name)
    demand_compiler()
    from torch._inductor import config

    assert asked[0] in config.cpp.cxx


def test_numbers_are_as_wide_as_the_device_computes(folders):
    for runtime, device, precision in (
        ("torch", "cpu", "fp32"),
        ("torch_compile", "cpu", "fp32"),
        ("torch", "cuda", "fp16"),
        ("torch_2_4", "cpu", "fp16"),
    ):
        assert Subject.read("dense", folders["alike"], runtime, device).precision == precision
    assert type(opener("torch", device="cpu")(folders["alike"], 1)) is TorchDecoder


def test_torch_is_timed_on_a_processor(tmp_path, monkeypatch):
    """The whole stage, all models in this process: what a real one does is tested with ONNX Runtime."""
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
    dense, smaller = tiny_model("llama", tmp_path / "dense"), tiny_model("llama", tmp_path / "smaller", intermediate_size=32)
    recipe = BenchmarkSlice(runtime="torch", workloads=(Workload(prompt=6, output=4),), rounds=2, minimum_seconds=0.0)
    out = tmp_path / "out"
    out.mkdir()
    benchmark(dense, {"smaller": smaller}, recipe, RunOptions(threads=1), out, Events(), {"dense": 10.0, "smaller": 11.0})
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    model = results["models"]["smaller"]
    assert (model["precision"], model["lowering"]) == ("fp32", "torch")
    assert model["first_requests"]["seconds"] >= model["cold_start"]["first_request"] > 0
    assert "| first requests s |" in (out / "results.md").read_text(encoding="utf-8")
