"""Which process a model is opened in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.stage import MeasuredModel
from pipeline.common.options import RunOptions

SUBJECT: Any = SimpleNamespace(folder=Path("model"), geometry=SimpleNamespace(vocab=8))


class Process:
    """Notes what it is asked."""

    def __init__(self, started: list[Process]) -> None:
        self.asked: list[str] = []
        self.ended = 0
        started.append(self)

    def ask(self, do: str, **_: Any) -> dict[str, Any]:
        self.asked.append(do)
        return {"prefill": 3.0, "gaps": [], "others": 0.0} if do == "run" else {"seconds": 1.0, "before": 2}

    def __exit__(self, *_: object) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    ("runtime", "device", "processes"),
    [("onnxruntime", "cpu", 3), ("onnxruntime_genai", "cpu", 3), ("onnxruntime_cuda", "cpu", 1), ("torch", "cpu", 1), ("torch", "cuda", 1)],
)
def test_each_opening_has_a_process_of_its_own_where_one_starts_soon(runtime, device, processes):
    started: list[Process] = []
    recipe = BenchmarkSlice.model_validate({"workloads": ["4/1"], "runtime": runtime})
    with MeasuredModel(lambda: Process(started), SUBJECT, recipe, RunOptions(device=device)) as model:
        for _ in range(3):
            model.open()
            model.run(Workload(prompt=4), 0)
        assert sum(process.ended for process in started) == processes - 1
        facts = model.facts()
    assert [process.ended for process in started] == [1] * processes
    opened = [do for process in started for do in process.asked if do != "pin"]
    assert opened == ["load", "run"] * 3 + ["energy", "memory"]
    assert all(process.asked[0] == "pin" for process in started)
    assert facts["cold_start_samples"]["load"] == [1.0] * 3
