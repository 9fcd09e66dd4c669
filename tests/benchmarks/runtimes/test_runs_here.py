"""What could be timed here is asked of the same demands that timing makes."""

from __future__ import annotations

import importlib.util
import sys
from typing import get_args

import pytest
import torch
from typer.testing import CliRunner

import benchmarks.runtimes.opening
import benchmarks.runtimes.runs_here
import exporters.onnx.runtime
from benchmarks.runtimes.names import Runtime
from benchmarks.runtimes.runs_here import runs_here
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError
from trimline.cli.app import app


def test_every_runtime_has_a_line_and_those_on_a_gpu_say_what_they_lack():
    found = {line.runtime: line for line in runs_here()}
    assert set(get_args(Runtime)) < set(found)
    assert found["torch"].lacks == ""
    if not cuda_devices():
        for runtime in ("onnxruntime_cuda", "onnxruntime_tensorrt", "tensorrt", "torch_2_4"):
            assert "GPU" in found[runtime].lacks


def test_a_missing_runtime_is_said(monkeypatch):
    def missing() -> None:
        raise TrimlineError("ONNX Runtime is not installed.", "pip install it.")

    monkeypatch.setattr(exporters.onnx.runtime, "has_genai", lambda: False)
    assert {line.runtime: line.lacks for line in runs_here()}["onnxruntime_genai"] == "onnxruntime-genai is not installed."
    monkeypatch.setattr(benchmarks.runtimes.opening, "needs_runtime", missing)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # its import fails from here on
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = {line.runtime: line.lacks for line in runs_here()}
    assert found["onnxruntime"] == found["onnxruntime_cuda"] == "ONNX Runtime is not installed."
    assert found["a Triton server"] == found["a server of OpenAI's protocol"] == "httpx2 is not installed."
    assert "llama-cpp-python is not installed" in found["llama_cpp"]


def test_an_installed_wheel_has_no_client_of_servers(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks.runtimes.runs_here, "STUDIES", tmp_path / "studies")
    found = {line.runtime: line.lacks for line in runs_here()}
    assert found["a Triton server"] == found["a server of OpenAI's protocol"] == "The client is in a checkout of Trimline only."


def test_a_processor_build_lacks_the_provider_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(benchmarks.runtimes.opening, "cuda_devices", lambda: ["a GPU"])
    found = {line.runtime: line.lacks for line in runs_here()}
    assert found["onnxruntime_cuda"] == "This build of ONNX Runtime has no CUDAExecutionProvider."
    assert found["onnxruntime_tensorrt"] == "This build of ONNX Runtime has no TensorrtExecutionProvider."


@pytest.mark.parametrize(
    ("devices", "available", "words"),
    [
        (None, False, "on cpu; the driver sees no GPU"),
        (["NVIDIA H100"], True, "on cpu, or with --device cuda on NVIDIA H100"),
        (["NVIDIA H100"], False, "on cpu; this build of torch has no CUDA"),
    ],
)
def test_the_lines_of_torch_say_where_it_would_compute(monkeypatch, devices, available, words):
    monkeypatch.setattr(benchmarks.runtimes.runs_here, "cuda_devices", lambda: devices)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    found = {line.runtime: line.where for line in runs_here()}
    assert found["torch"] == found["torch_compile"] == words
    assert not found["onnxruntime"]
    shown = CliRunner().invoke(app, ["bench", "--targets"], env={"COLUMNS": "250"}).stdout
    assert f"yes, {words}" in shown


@pytest.mark.parametrize("arguments", [("--targets",), ("dense", "--targets")])
def test_the_command_needs_no_folders_for_it(arguments):
    done = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "onnxruntime_tensorrt" in done.stdout
    assert "benchmark: {runtime: torch}" in done.stdout
    narrow = CliRunner().invoke(app, ["bench", "--targets"], env={"COLUMNS": "40"}).stdout
    assert [line.how for line in runs_here() if not any(row.endswith(f": {line.how}") for row in narrow.splitlines())] == []
