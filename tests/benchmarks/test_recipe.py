"""Workloads by name, and sweeps over batch sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.machine.environment import huge_pages, power_cap
from benchmarks.recipe import NAMED_WORKLOADS, BenchmarkSlice, Workload
from pipeline.common.errors import TrimlineError
from trimline.cli.arguments import benchmark_slice


def test_a_workload_is_given_by_its_name():
    found = BenchmarkSlice.model_validate({"workloads": ["512/128", "512/128x4", "128/17 ×2", {"prompt": 8}]}).workloads
    assert found == (Workload(prompt=512, output=128), Workload(prompt=512, output=128, batch=4), Workload(prompt=128, output=17, batch=2),
                     Workload(prompt=8))  # fmt: skip
    assert BenchmarkSlice.model_validate({"workloads": [one.name for one in found]}).workloads == found
    with pytest.raises(ValidationError, match="'512' is no workload; write prompt/output"):
        BenchmarkSlice.model_validate({"workloads": ["512"]})


def test_named_stands_for_what_other_tools_time():
    found = BenchmarkSlice.model_validate({"workloads": "named"})
    assert [workload.name for workload in found.workloads] == list(NAMED_WORKLOADS)
    assert BenchmarkSlice.model_validate(found.model_dump(mode="json")) == found


def test_the_command_sweeps_over_batches_and_keeps_the_rest_of_the_recipe(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    steps = "prune: {steps: [{method: cfsp, budget: {ffn: {remove: 0.5}}}]}"
    file.write_text(f"name: x\n{steps}\nbenchmark: {{seed: 7, workloads: [64/9]}}\n")
    assert [one.name for one in benchmark_slice(file, None, batches=[1, 4]).workloads] == ["64/9", "64/9 ×4"]
    found = benchmark_slice(file, 30, ["512/128", "named"], [2], "torch")
    assert [one.name for one in found.workloads] == ["512/128 ×2", "128/128 ×2", "1024/1024 ×2", "2048/128 ×2", "128/2048 ×2"]
    assert (found.seed, found.rounds, found.runtime) == (7, 30, "torch")
    assert benchmark_slice(None, None) == BenchmarkSlice()
    assert found.most_seconds == 5 * BenchmarkSlice().most_seconds  # five workloads, and the recipe has one
    assert benchmark_slice(file, None, ["named"], most_seconds=900.0).most_seconds == 900
    with pytest.raises(TrimlineError, match="is no workload"):
        benchmark_slice(None, None, ["long"])
    with pytest.raises(TrimlineError, match="runtime"):
        benchmark_slice(None, None, runtime="torhc")


def test_a_power_cap_is_in_watts_or_unknown(tmp_path: Path):
    (tmp_path / "limit").write_text("65000000\n")
    assert power_cap(tmp_path / "limit") == 65.0
    assert power_cap(tmp_path / "none") is None


def test_huge_pages_are_what_is_chosen_or_unknown(tmp_path: Path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert huge_pages(tmp_path / "enabled") == "madvise"
    assert huge_pages(tmp_path / "none") is None
