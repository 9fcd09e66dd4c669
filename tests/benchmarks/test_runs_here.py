"""What could be timed here is asked of the same demands that timing makes."""

from __future__ import annotations

import importlib.util
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

import benchmarks.runs_here
import exporters.onnx.runtime
from benchmarks.runs_here import runs_here
from benchmarks.runtimes import Runtime
from pipeline.driver import cuda_devices
from pipeline.errors import TrimlineError
from trimline.cli import app


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

    monkeypatch.setattr(benchmarks.runs_here, "needs_runtime", missing)
    monkeypatch.setattr(exporters.onnx.runtime, "has_genai", lambda: False)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # its import fails from here on
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = {line.runtime: line.lacks for line in runs_here()}
    assert found["onnxruntime"] == found["onnxruntime_cuda"] == "ONNX Runtime is not installed."
    assert found["onnxruntime_genai"] == "onnxruntime-genai is not installed."
    assert found["a Triton server"] == found["a server of OpenAI's protocol"] == "httpx2 is not installed."
    assert "llama-cpp-python is not installed" in found["llama_cpp"]


def test_a_processor_build_lacks_the_provider_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(benchmarks.runs_here, "demand_gpu", lambda provider: None)
    found = {line.runtime: line.lacks for line in runs_here()}
    assert found["onnxruntime_cuda"] == "This build of ONNX Runtime has no CUDAExecutionProvider."
    assert found["onnxruntime_tensorrt"] == "This build of ONNX Runtime has no TensorrtExecutionProvider."


@pytest.mark.parametrize("arguments", [("--targets",), ("dense", "--targets")])
def test_the_command_needs_no_folders_for_it(arguments):
    done = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "onnxruntime_tensorrt" in done.stdout
    assert "benchmark: {runtime: torch}" in done.stdout
