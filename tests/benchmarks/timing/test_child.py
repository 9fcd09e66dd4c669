from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.timing.child import BenchmarkWorker
from benchmarks.timing.worker import Worker
from pipeline.common.errors import TrimlineError


class Counting:
    """A decoder that notes what it is given; its cache is the number of tokens seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], int]] = []
        self.ids: list[np.ndarray] = []

    def empty(self, batch: int, capacity: int) -> int:
        self.capacity = capacity
        return 0

    def run(self, ids: np.ndarray, past: int) -> tuple[None, int]:
        self.seen.append((ids.shape, past))
        self.ids.append(ids)
        return None, past + ids.shape[1]


def loaded() -> tuple[Worker, Counting]:
    decoder = Counting()
    worker = Worker(lambda folder, threads: decoder)
    worker.load("anywhere", 1)
    return worker, decoder


def test_a_request_is_one_prompt_pass_and_single_steps_after_it():
    worker, decoder = loaded()
    reply = worker.run(prompt=5, output=4, batch=2, vocab=50, seed=1)
    assert decoder.seen == [((2, 5), 0), ((2, 1), 5), ((2, 1), 6), ((2, 1), 7)]
    assert len(reply["gaps"]) == 3
    assert reply["prefill"] > 0
    assert decoder.capacity >= 8


def test_the_seed_decides_the_prompt_and_tokens_stay_in_the_vocabulary():
    worker, decoder = loaded()
    for seed in (1, 1, 2):
        worker.run(prompt=40, output=1, batch=1, vocab=7, seed=seed)
    first, same, other = decoder.ids
    assert (first == same).all()
    assert (first != other).any()
    assert first.max() < 7


def test_a_users_error_is_a_reply():
    refusal = Worker().answer({"do": "run", "prompt": 1, "output": 1, "batch": 1, "vocab": 2, "seed": 0})
    assert "before it was given a model" in refusal["problem"]


def test_a_real_worker_runs_a_real_model(exported: dict[str, Path]):
    with BenchmarkWorker("dense") as child:
        assert child.ask("pin", threads=1)["cores"]
        assert child.ask("load", folder=str(exported["dense"]), threads=1)["seconds"] > 0
        reply = child.ask("run", prompt=6, output=4, batch=1, vocab=128, seed=3)
        assert len(reply["gaps"]) == 3
        assert child.ask("memory")["peak"] > 2**20


def test_a_users_error_comes_back_as_one(tmp_path: Path):
    with BenchmarkWorker("pruned") as child, pytest.raises(TrimlineError, match=r"pruned: There is no model\.onnx"):
        child.ask("load", folder=str(tmp_path), threads=1)


def test_a_worker_that_fails_is_an_error_that_says_what_it_said():
    with BenchmarkWorker("dense") as child, pytest.raises(TrimlineError, match="dense ended with exit status 1: KeyError: 'dance'"):
        child.ask("dance")


def test_a_worker_that_is_killed_is_an_error_and_names_memory():
    with BenchmarkWorker("dense") as child:
        child.ask("memory")
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(TrimlineError, match=r"ended by SIGKILL\. It may have run out of memory"):
            child.ask("memory")


def test_a_worker_that_hangs_is_an_error():
    with BenchmarkWorker("dense", patience=20) as child:
        child.ask("memory")
        child._patience = 0.2
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(TrimlineError, match="gave no answer"):
            child.ask("memory")


def test_no_process_is_left_behind():
    with BenchmarkWorker("dense") as child:
        child.ask("memory")
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.parametrize(("runtime", "known"), [("torch", True), ("onnxruntime", False)])
def test_memory_of_a_gpu_is_told_only_where_torch_holds_the_weights(runtime: str, known: bool, monkeypatch: pytest.MonkeyPatch):
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 77)
    worker = Worker(opener=lambda folder, threads: None)
    worker.load("anywhere", 1, runtime)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert worker.memory()["device_peak"] == (77 if known else None)
