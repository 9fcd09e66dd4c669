from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results.document import PairedComparison, Results
from benchmarks.results.markdown import memory, render
from benchmarks.stage import benchmark
from benchmarks.studies.realised_gain import BARS, _named, outcome, table
from benchmarks.timing.subject import Subject
from exporters.tensorrt.folder import SECONDS
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from tests.benchmarks.results.sample_results import comparison_record

RECIPE = BenchmarkSlice(
    workloads=(Workload(prompt=12), Workload(prompt=8, output=6, batch=2)), rounds=3, rounds_per_opening=2, minimum_seconds=0.0
)
ACCURACY = {"dense": 10.0, "pruned": 12.5}


@pytest.fixture(scope="module")
def results(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, list[Event]]:
    out, seen = tmp_path_factory.mktemp("benchmark"), []
    benchmark(exported["dense"], {"pruned": exported["pruned"]}, RECIPE, RunOptions(threads=1), out, Events(seen.append), ACCURACY)
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "results.md"]
    return json.loads((out / "results.json").read_text(encoding="utf-8")), (out / "results.md").read_text(encoding="utf-8"), seen


def test_raw_samples_are_kept_for_every_model_and_the_control(results: tuple[dict[str, Any], str, list[Event]]):
    samples = results[0]["samples"]
    assert set(samples) == {"12/1", "8/6 ×2"}
    assert set(samples["12/1"]) == {"dense", "dense again", "pruned"}
    assert all(len(one["prefill"]) == 3 for one in samples["12/1"].values())
    assert all([len(gaps) for gaps in one["gaps"]] == [5, 5, 5] for one in samples["8/6 ×2"].values())


def test_figures_follow_from_the_samples(results: tuple[dict[str, Any], str, list[Event]]):
    document = results[0]
    row = next(row for row in document["comparisons"] if (row["model"], row["metric"]) == ("pruned", "decode"))
    gaps = {name: [sum(g) / len(g) for g in document["samples"]["8/6 ×2"][name]["gaps"]] for name in ("dense", "pruned")}
    one, two, three = (a / b for a, b in zip(gaps["dense"], gaps["pruned"], strict=True))
    speed_up = ((one + two) / 2 * three) ** 0.5  # two rounds of the first opening, one of the second
    assert row["speed_up"]["value"] == pytest.approx(speed_up)
    assert (row["speed_up"]["rounds"], row["speed_up"]["openings"]) == (3, 2)
    assert row["realised_gain"]["value"] == pytest.approx(speed_up / row["allowed"])
    timing = next(row for row in document["timings"] if (row["model"], row["metric"]) == ("pruned", "decode"))
    assert timing["tokens_per_second"] == pytest.approx(2 / sorted(gaps["pruned"])[1])
    assert timing["gaps"]["n"] == 15
    whole = sorted(
        first + sum(gaps) for first, gaps in zip(*map(document["samples"]["8/6 ×2"]["pruned"].get, ("prefill", "gaps")), strict=True)
    )
    assert timing["request"]["seconds"]["p50"] == pytest.approx(whole[1])
    assert timing["request"]["tokens_per_second"] == pytest.approx(2 * 6 / whole[1])
    assert "| 8/6 ×2 | request | pruned |" in results[1]


def test_three_rounds_resolve_nothing(results: tuple[dict[str, Any], str, list[Event]]):
    document, page, _ = results
    assert {row["verdict"] for row in document["comparisons"]} == {"not resolved"}
    assert "not resolved" in page


def test_the_smaller_model_is_allowed_to_be_faster(results: tuple[dict[str, Any], str, list[Event]]):
    assert all(row["allowed"] > 1 for row in results[0]["comparisons"])


def test_models_carry_memory_cold_start_sizes_and_perplexity(results: tuple[dict[str, Any], str, list[Event]]):
    document = results[0]
    dense, pruned = document["models"]["dense"], document["models"]["pruned"]
    assert dense["parameters"] > pruned["parameters"]
    assert dense["weight_file_bytes"] > pruned["weight_file_bytes"]
    assert (dense["perplexity"], pruned["perplexity"]) == (10.0, 12.5)
    assert pruned["memory"]["peak"] > 0
    assert set(pruned["cold_start"]) == {"load", "first_request"}
    assert {name: len(samples) for name, samples in pruned["cold_start_samples"].items()} == {"load": 2, "first_request": 2}
    assert document["ceilings"]["bandwidth"] == max(document["ceilings"]["samples"]["bandwidth"]) > 1e8


def test_what_building_an_engine_took_stands_beside_the_cold_start(exported: dict[str, Path], tmp_path: Path, results):
    assert results[0]["models"]["dense"]["engine_build"] is None
    assert "engine build s" not in results[1]
    folder = Path(shutil.copytree(exported["pruned"], tmp_path / "engine"))
    write_json(folder / SECONDS, {"parse": 1.5, "build": 60.25})
    built = Subject.read("pruned", folder, "tensorrt").as_record()
    assert built["engine_build"] == {"parse": 1.5, "build": 60.25}
    models = {name: model | (built if name == "pruned" else {}) for name, model in results[0]["models"].items()}
    found = memory(Results.model_validate(results[0] | {"models": models}).models)
    assert [line.split(" | ")[-1].strip(" |") for line in found.splitlines()[2:]] == ["n/a", "61.8"]


def test_a_model_without_perplexity_is_named_and_not_printed(results: tuple[dict[str, Any], str, list[Event]]):
    document, page, _ = results
    assert "| pruned | 12.50 |" in page
    models = document["models"] | {"pruned": document["models"]["pruned"] | {"perplexity": None}}
    page = render(Results.model_validate(document | {"models": models}))
    assert "Not printed, for want of a perplexity: pruned." in page
    assert "| pruned |" not in page
    assert "| dense | 10.00 |" in page


def test_p99_is_printed_as_not_available(results: tuple[dict[str, Any], str, list[Event]]):
    assert "n/a (n=3)" in results[1]


def test_no_path_of_this_machine_is_written(results: tuple[dict[str, Any], str, list[Event]], exported: dict[str, Path]):
    assert str(exported["dense"].parent) not in json.dumps(results[0]) + results[1]


def test_progress_counts_the_rounds_of_all_workloads(results: tuple[dict[str, Any], str, list[Event]]):
    last = [event for event in results[2] if event.kind == "progress"][-1]
    assert (last.done, last.total) == (6, 6)


def test_a_reserved_name_and_a_folder_that_is_no_export_are_refused(exported: dict[str, Path], tmp_path: Path):
    for name, folder in (("dense again", exported["pruned"]), ("pruned", tmp_path)):
        with pytest.raises(TrimlineError):
            benchmark(exported["dense"], {name: folder}, RECIPE, RunOptions(threads=1), tmp_path, Events(), ACCURACY)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused(exported: dict[str, Path], tmp_path: Path):
    (tmp_path / "checkpoint_config.json").write_bytes((exported["dense"] / "checkpoint_config.json").read_bytes())
    (tmp_path / "export.json").write_text('{"precision": "fp3"}', encoding="utf-8")
    with pytest.raises(TrimlineError, match="fp3"):
        benchmark(tmp_path, {}, RECIPE, RunOptions(threads=1), tmp_path, Events(), ACCURACY)


def _comparison(low: float, high: float, *, holds: bool = True) -> PairedComparison:
    ratio = {"value": low, "low": low, "high": high, "rounds": 25, "of_medians": low, "of_medians_low": low, "of_medians_high": high}
    record = comparison_record("pruned", "512/1", "prefill", speed_up=ratio, control=ratio, control_holds=holds, allowed=1.4)
    return PairedComparison.model_validate(record)


def test_a_realised_gain_is_reached_missed_or_not_resolved():
    assert outcome(_comparison(1.2, 1.27)) == "reached"
    assert outcome(_comparison(1.2, 1.25)) == "missed"
    assert outcome(_comparison(1.2, 1.27, holds=False)) == "not resolved"
    assert table([_comparison(1.2, 1.27)]).row_count == 1


def test_the_bars_are_of_the_default_workloads():
    default = BenchmarkSlice()
    assert {name for name, _ in BARS} == {workload.name for workload in default.workloads}


def test_folders_of_one_name_stay_apart(tmp_path: Path):
    assert set(_named([tmp_path / "a" / "onnx", tmp_path / "b" / "onnx", tmp_path / "c"])) == {
        str(tmp_path / "a" / "onnx"),
        str(tmp_path / "b" / "onnx"),
        "c",
    }
