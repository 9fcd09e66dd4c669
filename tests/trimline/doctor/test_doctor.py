"""What ``trimline doctor`` makes of machines and environments, real and arranged."""

from __future__ import annotations

import io
from importlib import metadata

import pytest
from rich.console import Console

from pipeline.common.driver import cuda_devices
from pipeline.common.memory import memory_limit
from trimline.doctor import Finding, examine, render_findings
from trimline.doctor import packages as installed_packages
from trimline.doctor.machine import disk, driver, memory
from trimline.doctor.packages import built_in_model, openvino, requirements, runtime
from trimline.doctor.providers import examine_providers, try_provider

WANTED = ["torch>=2.9", "transformers>=5.20,<6", "gguf>=0.17", 'onnxruntime>=1.23; extra == "cpu"']


def test_examine_this_machine(tmp_path):
    findings = {finding.name: finding for finding in examine(tmp_path)}
    for name in ("Python", "torch", "Processor", "Memory", "Disk", "GPU", "ONNX Runtime", "TensorRT", "Built-in model", "transformers"):
        assert findings[name].value
    assert findings["transformers"].value == metadata.version("transformers")
    assert all(finding.advice for finding in findings.values() if finding.state != "ok")


def test_versions_in_range_are_shown():
    found = list(requirements(WANTED, {"torch": "2.13.0+cpu", "transformers": "5.23.0", "gguf": "0.19.0"}))
    assert found == [Finding("transformers", "5.23.0"), Finding("gguf", "0.19.0")]


def test_a_version_out_of_range_is_a_warning():
    found = list(requirements(WANTED, {"torch": "2.13.0+cpu", "transformers": "4.57.6", "gguf": "0.19.0"}))
    assert found[0].state == "warn"
    assert "4.57.6" in found[0].value
    assert found[0].advice == "pip install 'transformers<6,>=5.20'"


def test_a_missing_dependency_is_a_warning_and_an_extra_is_not():
    found = list(requirements(WANTED, {"transformers": "5.23.0", "gguf": "0.19.0"}))
    assert [(finding.name, finding.state) for finding in found] == [("torch", "warn"), ("transformers", "ok"), ("gguf", "ok")]


@pytest.mark.parametrize(
    ("present", "state", "word"),
    [
        ({}, "missing", "not installed"),
        ({"openvino": "2026.4.1"}, "warn", "without openvino-genai, openvino-tokenizers, nncf"),
        ({"openvino": "2026.4.1", "openvino-genai": "2026.3.0.0"}, "warn", "of different releases"),
        (
            {"openvino": "2026.4.1", "openvino-genai": "2026.4.1.0", "openvino-tokenizers": "2026.4.1.0", "nncf": "3.4.0"},
            "ok",
            "nncf 3.4.0",
        ),
    ],
)
def test_openvinos_packages_have_to_be_of_one_release(present: dict[str, str], state: str, word: str) -> None:
    found = openvino(present)
    assert found.state == state
    assert word in found.value


@pytest.mark.parametrize(
    ("installed", "state", "word"),
    [
        ({"onnxruntime": "1.31.1"}, "ok", "onnxruntime 1.31.1"),
        ({"onnxruntime-gpu": "1.31.1"}, "ok", "onnxruntime-gpu 1.31.1"),
        ({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}, "warn", "onnxruntime-gpu 1.30.0"),
        ({}, "warn", "not installed"),
    ],
)
def test_both_runtimes_installed_is_a_trap(installed, state, word):
    found = runtime(installed)
    assert found.state == state
    assert word in found.value


def test_built_in_model_absent(monkeypatch):
    monkeypatch.setattr(installed_packages, "DEFAULT_PACKAGE", "no-such-distribution")
    assert built_in_model().state == "missing"


def test_built_in_model_without_its_file(monkeypatch):
    monkeypatch.setattr(installed_packages, "DEFAULT_PACKAGE", "packaging")  # installed, and carries no model
    found = built_in_model()
    assert found.state == "warn"
    assert "--force-reinstall" in found.advice


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "2147483648\n"}, 2**31),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, 2**30),
        ({}, None),
    ],
)
def test_container_limits(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_memory_counts_what_the_container_allows():
    assert memory(64 * 2**30, None) == Finding("Memory", "68.7 GB")
    found = memory(64 * 2**30, 2**30)
    assert found.state == "warn"
    assert found.value == "1.07 GB (container's limit; the machine has 68.7 GB)"
    assert memory(16 * 2**30, 2**62).state == "ok"  # cgroup v1 writes a huge number for "no limit"


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert "free" in disk(tmp_path / "out" / "deeper").value


def test_the_driver_is_asked_without_any_gpu_package():
    devices = cuda_devices()
    assert devices is None or all(isinstance(name, str) and name for name in devices)
    assert (driver().value == "no NVIDIA driver") == (devices is None)


def test_the_processor_runs():
    pytest.importorskip("onnxruntime", reason="no ONNX Runtime is installed")
    assert try_provider("CPUExecutionProvider") is None
    assert Finding("CPUExecutionProvider", "runs") in list(examine_providers(driver=False))


def test_a_provider_that_is_not_there_is_no_silent_fallback():
    pytest.importorskip("onnxruntime", reason="no ONNX Runtime is installed")
    assert try_provider("NoSuchExecutionProvider")


def test_rendering_counts_what_needs_mending():
    output = io.StringIO()
    findings = [Finding("A", "1"), Finding("B", "[bold]", "warn", "do this"), Finding("C", "none", "missing", "or that")]
    render_findings(findings, Console(file=output, width=80))
    text = output.getvalue()
    assert "1 to mend." in text
    assert "[bold]" in text
    assert "do this" in text
