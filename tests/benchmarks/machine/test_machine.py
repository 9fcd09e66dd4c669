from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from benchmarks.machine import environment as surroundings
from benchmarks.machine import pinning
from benchmarks.machine.ceilings import multiply_rates, read_rates
from benchmarks.machine.environment import environment, fingerprint, versions
from benchmarks.machine.memory import process_memory
from benchmarks.machine.pinning import by_physical_core
from benchmarks.results.markdown import machine
from tests.benchmarks.results.sample_results import results


def test_the_environment_block_says_what_a_reader_needs():
    block = environment(threads=2)
    assert block["threads"] == 2
    assert block["memory_bytes"] > 2**28
    assert block["cores"]["logical"] == os.cpu_count()
    assert {"torch", "numpy"} <= set(block["versions"])
    json.dumps(block)


def test_clock_and_versions_are_printed_with_the_results():
    block = environment(threads=2) | {"frequency_mhz": 2445.4, "load_average": {"before": 0.1, "after": 0.2}}
    said = machine(results(environment=block))
    assert "| clock after the timing | 2445 MHz |" in said
    assert f"| versions | python {block['python']}, " in said
    assert f"numpy {numpy.__version__}" in said
    assert "| hash of what was asked for | abc |" in said


def test_versions_of_what_times_are_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surroundings, "version", lambda name: "1.2")
    assert {"onnxruntime", "onnxruntime-genai", "llama-cpp-python", "torch", "tensorrt"} <= set(versions())


def test_a_fingerprint_holds_still_and_tells_thread_counts_apart():
    assert fingerprint(1) == fingerprint(1)
    assert fingerprint(1) != fingerprint(2)


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surroundings, "RUNTIMES", ("numpy",))
    monkeypatch.setattr(surroundings, "ENGINES", ("a-package-that-nobody-wrote",))
    assert list(versions()) == ["numpy"]


def test_a_tool_that_is_absent_tells_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert surroundings.gpu() is None
    assert surroundings.commit() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
def test_memory_grows_with_what_is_held():
    before = process_memory()["anonymous"]
    held = bytearray(os.urandom(1)) * (64 * 2**20)
    after = process_memory()["anonymous"]
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * len(held)
    assert (process_memory()["peak"] or 0) >= after


def test_without_proc_the_peak_still_comes_from_the_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.machine.memory._status", dict)
    assert (process_memory()["peak"] or 0) > 2**24
    assert process_memory()["anonymous"] is None


def test_physical_cores_come_before_second_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pinning, "_siblings", lambda core: f"{core % 4},{core % 4 + 4}")
    assert by_physical_core([0, 1, 4, 5, 2]) == [0, 1, 2, 4, 5]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_pinning_confines_a_process():
    code = (
        "import os; from benchmarks.machine.pinning import pin; cores = pin(1); print(len(cores), sorted(os.sched_getaffinity(0)) == cores)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


def test_ceilings_are_rates_of_every_repeat():
    pytest.importorskip("onnxruntime", reason="multiplying is measured in ONNX Runtime")
    assert all(rate > 1e7 for rate in read_rates(1, repeats=3, size=2**22))
    assert len(multiply_rates(1, repeats=3, rows=64, side=128)) == 3
