"""Documents of a benchmark for tests: what they care about given, the rest of it small and valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.formulas.statistics import Ratio, summarise
from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.document import Results

RATIO = asdict(Ratio(1.0, 0.9, 1.1, 30, 1.0, 0.9, 1.1, 6))
PROCESS = {
    "cold_start": {"load": 1.0, "first_request": 2.0},
    "cold_start_samples": {"load": [1.0], "first_request": [2.0]},
    "first_requests": {"seconds": 3.0, "samples": [3.0]},
    "energy": {"counters": {}, "refused": {"processor": "no zone"}},
    "memory": {"peak": 2**20, "anonymous": 2**19, "device_peak": None, "before_load": 2**18},
}
MODEL = {
    "precision": "fp32",
    "lowering": "fused",
    "logits": "all",
    "parameters": 1000,
    "weight_file_bytes": 4000,
    "engine_build": None,
    "engine_settings": None,
    "kv_bytes_per_token": 64,
    **PROCESS,
    "perplexity": 10.0,
}


def comparison_record(model: str, workload: str, phase: str, **others: Any) -> dict[str, Any]:
    """One comparison as the file has it."""
    judged = {
        "control_holds": True,
        "verdict": "no measurable change",
        "allowed": 1.2,
        "realised_gain": {"value": 0.8, "low": 0.7, "high": 0.9},
    }
    return {"workload": workload, "metric": phase, "model": model, "speed_up": RATIO, "control": RATIO, **judged} | others


def timing_record(model: str, workload: str, phase: str, **others: Any) -> dict[str, Any]:
    """One timing as the file has it."""
    seconds = summarise([1.0, 2.0, 3.0]).as_record()
    figures = {"tokens_per_second": 4.0, "time_bound": 0.5, "mbu": 0.5, "mfu": 0.1, "others": seconds, "joules_per_token": {}}
    return {"workload": workload, "metric": phase, "model": model, "seconds": seconds, **figures} | others


def record(recipe: BenchmarkSlice | None = None, samples: Mapping[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """A whole document as the file has it."""
    asked = (recipe or BenchmarkSlice()).model_dump(mode="json")
    whole = {
        "formulas": {},
        "recipe": asked,
        "recipe_hash": "abc",
        "ceilings": {"bandwidth": 1e9, "rate": 1e9, "multiplied": "fp32", "samples": {"bandwidth": [1e9], "rate": [1e9]}},
        "models": {"dense": MODEL, "pruned": MODEL},
        "control_process": PROCESS,
        "timings": [],
        "comparisons": [],
        "samples": dict(samples or {}),
        "environment": {},
    }
    return whole | others


def results(recipe: BenchmarkSlice | None = None, samples: Mapping[str, Any] | None = None, **others: Any) -> Results:
    """The same, read."""
    return Results.model_validate(record(recipe, samples, **others))
