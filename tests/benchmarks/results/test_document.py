"""The document of a benchmark: what is read is written again byte for byte, old records included, and what is none is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.formulas.statistics import Ratio, Summary
from benchmarks.results.document import RESULTS, Results, read, read_file
from pipeline.common.errors import TrimlineError
from pipeline.common.files import write_json
from tests.benchmarks.results.sample_results import RATIO, comparison_record, record, timing_record

KEPT = sorted((Path(__file__).parents[3] / "benchmarks" / "studies" / "measured" / "systems" / "timed").glob("*.json"))
RAW = {"prefill": [4.0, 6.0], "gaps": [[1.0, 2.0], [3.0, 4.0]], "others": [0.0, 0.1], "joules": [{}, {"decode": {"processor": 2.5}}]}
SECONDS = timing_record("dense", "8/3", "decode")["seconds"]


def sample() -> dict:
    timings = [
        timing_record("dense", "8/3", "prefill"),
        timing_record("dense", "8/3", "decode", gaps=SECONDS, request={"seconds": SECONDS, "tokens_per_second": 2.0}),
        timing_record("pruned", "8/3", "prefill", parts={"compute": SECONDS}, queries_per_second=3.5),
    ]
    compared = [comparison_record("pruned", "8/3", phase) for phase in ("prefill", "decode")]
    return record(samples={"8/3": {"dense": RAW, "pruned": RAW | {"parts": [{}, {}]}}}, timings=timings, comparisons=compared)


def test_what_is_read_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    write_json(tmp_path / RESULTS, sample())
    read(tmp_path).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / RESULTS).read_bytes()


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_records_of_older_versions_stay_as_they_are(path: Path, tmp_path: Path) -> None:
    read_file(path, Results).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_older_records_lack_what_was_added_since() -> None:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in KEPT]
    assert {"openings" in row["speed_up"] for found in documents for row in found["comparisons"]} == {False}
    assert {"request" in row for found in documents for row in found["timings"] if row["metric"] == "decode"} == {False, True}


def test_things_have_one_name_in_memory() -> None:
    found = Results.model_validate(sample())
    row, timing = found.comparisons[0], found.timings[1]
    assert (row.phase, row.speedup, row.realised_gain.value) == ("prefill", Ratio(**RATIO), 0.8)
    assert timing.seconds == Summary(**SECONDS)
    assert found.samples["8/3"]["dense"].seconds("prefill") == [4.0, 6.0]
    assert found.samples["8/3"]["dense"].seconds("decode") == [1.5, 3.5]
    assert found.samples["8/3"]["dense"].whole_seconds() == [7.0, 13.0]
    assert found.asked.rounds == 25


def test_a_perplexity_is_added_to_every_model_and_none_where_it_is_unknown() -> None:
    models = Results.model_validate(sample()).with_perplexities({"dense": 7}).as_record()["models"]
    assert [(name, model["perplexity"]) for name, model in models.items()] == [("dense", 7), ("pruned", None)]


def test_another_file_is_refused_and_its_first_wrong_field_named(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="does not exist"):
        read(tmp_path)
    wrong = sample()
    wrong["comparisons"][1]["allowed"] = "much"
    write_json(tmp_path / RESULTS, wrong)
    with pytest.raises(TrimlineError, match=r"results\.json holds no results of a benchmark: comparisons\.1\.allowed: .*number"):
        read(tmp_path)
