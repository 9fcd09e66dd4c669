"""The gate of an engine with a stand-in for the engine: what it runs in is a process of its own, whose death is a sentence."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from exporters.onnx.running.shapes import EngineRequest
from exporters.tensorrt import gate
from exporters.tensorrt.child import run_in_child
from exporters.tensorrt.gate import gate_engine
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from tests.exporters.models import OPTIONS

# In place of an engine: the graph in ONNX Runtime, off by so much.
STAND_IN = """
from exporters.onnx.running.session import OnnxDecoder
from exporters.tensorrt import session, worker

class Engine(OnnxDecoder):
    precision = "fp32"
    def __init__(self, folder):
        super().__init__(folder / "graph", 1)
    def step(self, ids, past):
        logits, past = super().step(ids, past)
        return logits + {off}, past

session.EngineDecoder = Engine
worker.main()
"""
DIES = "import os, signal, sys\nprint('[E] CUDA is gone', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGABRT)\n"


@pytest.fixture
def gated(sparse_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Gates a folder without an engine, with a program in place of the worker."""
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "graph").symlink_to(sparse_onnx)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def call(program: str, events: Events | None = None) -> dict:
        (tmp_path / "stands_in.py").write_text(program, encoding="utf-8")
        monkeypatch.setattr(gate, "run_in_child", functools.partial(run_in_child, module="stands_in"))
        gate_engine(sparse_onnx / "model.onnx", engine, [EngineRequest(12, 4)], OPTIONS, events or Events())
        return json.loads((engine / "gate.json").read_text(encoding="utf-8"))

    return call


def test_an_engine_that_computes_the_same_passes(gated):
    told: list[Event] = []
    record = gated(STAND_IN.format(off="1e-5"), Events(told.append))
    assert record["precision"] == "fp32"
    assert record["checks"].keys() == {"without cache", "with cache, token by token"}
    for check in record["checks"].values():
        assert check["passed"]
        assert check["difference"] == pytest.approx(1e-5, rel=0.1)
    assert [event.text.split(":")[0] for event in told] == ["engine, without cache", "engine, with cache, token by token"]


def test_an_engine_that_computes_something_else_fails(gated, tmp_path):
    with pytest.raises(GateError, match="without cache"):
        gated(STAND_IN.format(off="0.5"))
    assert not (tmp_path / "engine" / "gate.json").exists()


def test_an_engine_that_ends_its_process_is_a_sentence(gated):
    with pytest.raises(TrimlineError, match=r"The process that runs the engine was ended by SIGABRT: CUDA is gone\. .*doctor"):
        gated(DIES)


def test_what_the_engine_says_of_itself_comes_through(gated):
    """As on a machine without a GPU: the real decoder refuses, in its own two sentences."""
    with pytest.raises(TrimlineError) as caught:
        gated("from exporters.tensorrt import worker\nworker.main()\n")
    assert caught.value.problem.startswith("There is no build.json in")
    assert caught.value.remedy == "Give a folder that `trimline build` wrote."


def test_a_fault_that_is_no_sentence_becomes_one(gated):
    program = STAND_IN.format(off="0").replace("return logits", "raise RuntimeError('out of memory')\n        return logits")
    with pytest.raises(TrimlineError, match=r"The engine in .*engine does not run here: out of memory\. .*doctor"):
        gated(program)


def test_a_full_disk_stays_one(gated):
    program = STAND_IN.format(off="0").replace("return logits", "raise OSError(28, 'No space left on device')\n        return logits")
    with pytest.raises(OSError, match="No space left"):
        gated(program)
