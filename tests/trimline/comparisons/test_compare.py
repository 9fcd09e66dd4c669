"""Results side by side: verdicts on invented figures against arithmetic, and a real run, package, sweep and point of a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_rel

import benchmarks.stage
from benchmarks.machine.environment import environment
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from tests.benchmarks.results.sample_results import results
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_refused, changed, recipe, tiny_inputs
from tests.end_to_end.scenario import trimline as command
from trimline.api import compare, run, sweep
from trimline.comparisons.comparison import comparisons
from trimline.comparisons.pairs import at_speed, compare_pair
from trimline.comparisons.result import Result, TimedWorkload, machine_of
from trimline.comparisons.results import _task_row, read_results
from trimline.comparisons.tables import notes, write_comparison
from trimline.recipe import checked_recipe
from trimline.reporting.data import Measure, ReportData
from trimline.stages.collect import environment_rows

AXIS = ("128/17", "decode")
RECIPE = checked_recipe({"prune": {"steps": [{"budget": {"ffn": {"remove": 0.3}}}]}})
NOISE = np.random.default_rng(0).normal(0, 0.3, 20)


def result(name, speedup, loss, *, half=0.01, seed=1, series="", samples=(), run="", resolved=True, **others):
    losses = tuple((loss + NOISE + np.random.default_rng(seed).normal(0, 0.01, 20)).tolist())
    runs = {run: samples} if samples else {}
    speed = TimedWorkload(0.02 / speedup, Measure(speedup, speedup - half, speedup + half), resolved, runs)
    given = {"machine": {"runtime": "onnxruntime", "threads": "2"}, "dense": "M in fp32", "text": "t", "speeds": {AXIS: speed}}
    perplexity = Measure(math.exp(float(np.mean(losses))))
    return Result(name=name, perplexity=perplexity, losses=losses, parameters=1, recipe=RECIPE, series=series, **(given | others))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ((1.5, 3.0), (1.5, 2.9), "at equal latency b predicts better"),
        ((1.5, 2.9), (1.5, 3.0), "at equal latency a predicts better"),
        ((1.5, 3.0), (1.5, 3.0), "equal latency, no measurable difference in perplexity"),
        ((1.5, 3.0), (1.8, 2.9), "b is better in both"),
        ((1.8, 2.9), (1.5, 3.0), "a is better in both"),
        ((1.5, 3.0), (1.8, 3.1), "b is faster, a predicts better: not at equal latency"),
        ((1.5, 3.0), (1.8, 3.0), "b is faster at no measurable difference in perplexity"),
    ],
)
def test_what_follows_from_two_results(one, other, words):
    pair = compare_pair(result("a", *one, seed=1), result("b", *other, seed=2), AXIS)
    assert pair.verdict == words
    assert pair.faster.value == pytest.approx(other[0] / one[0])


def test_wide_intervals_and_bad_controls_conclude_nothing():
    a, b = result("a", 1.5, 3.0, half=0.1), result("b", 1.55, 2.9, half=0.1)
    assert compare_pair(a, b, AXIS).verdict == "speeds not told apart to within 3 %"
    assert compare_pair(a, result("b", 1.5, 2.9, resolved=False), AXIS).verdict.startswith("not resolved")
    assert compare_pair(a, replace(b, text="another"), AXIS).perplexity is None


def test_the_interval_of_two_runs_holds_both_errors():
    pair = compare_pair(result("a", 1.2, 3.0, half=0.03), result("b", 1.8, 3.0, half=0.04), AXIS)
    below = math.hypot(math.log(1.8 / 1.76), math.log(1.23 / 1.2))
    above = math.hypot(math.log(1.84 / 1.8), math.log(1.2 / 1.17))
    assert [pair.faster.low, pair.faster.high] == pytest.approx([1.5 * math.exp(-below), 1.5 * math.exp(above)])
    assert not pair.paired


def test_rounds_of_one_run_are_paired():
    draw = np.random.default_rng(5)
    pace = draw.uniform(1, 3, 31)  # the machine's, which the ratio does not see
    a, b = tuple(0.02 * pace), tuple(0.01 * pace * draw.normal(1, 0.001, 31))
    pair = compare_pair(result("a", 1.0, 3.0, samples=a, run="r"), result("b", 1.0, 3.0, samples=b, run="r"), AXIS)
    assert pair.paired
    assert pair.faster.value == pytest.approx(2.0, abs=0.002)
    assert pair.faster.high - pair.faster.low < 0.01
    assert not compare_pair(result("a", 1.0, 3.0, samples=a, run="r"), result("b", 1.0, 3.0, samples=b, run="s"), AXIS).paired


def test_the_ratio_of_perplexities_is_paired_by_window():
    a, b = result("a", 1.5, 3.0, seed=1), result("b", 1.5, 2.95, seed=2)
    interval = ttest_rel(b.losses, a.losses).confidence_interval(0.95)
    found = compare_pair(a, b, AXIS).perplexity
    assert [found.value, found.low, found.high] == pytest.approx(
        [b.perplexity.value / a.perplexity.value, math.exp(interval.low), math.exp(interval.high)]
    )


def test_a_series_is_read_at_the_speed_of_a_result():
    slow, fast = result("s, 0.2", 1.2, 3.0, seed=1, series="s"), result("s, 0.4", 1.6, 3.4, seed=2, series="s")
    mine = result("mine", 1.3, 2.9, seed=3)
    found = at_speed(mine, [fast, slow], AXIS)
    losses = 0.75 * np.array(slow.losses) + 0.25 * np.array(fast.losses)
    assert found.between == ("s, 0.2", "s, 0.4")
    assert found.perplexity == pytest.approx(math.exp(losses.mean()))
    assert found.ratio.value == pytest.approx(mine.perplexity.value / found.perplexity)
    assert found.ratio.high < 1
    assert at_speed(result("mine", 1.7, 2.9), [fast, slow], AXIS) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": {"runtime": "onnxruntime", "threads": "4"}}, "threads is 2 for a and 4 for b"),
        ({"machine": {"runtime": "torch", "threads": "2"}}, "runtime is onnxruntime for a and torch for b"),
        ({"machine": {"runtime": "onnxruntime"}}, "threads is 2 for a and unknown for b"),
        ({"dense": "M in int4"}, "over M in fp32, b's over M in int4"),
        ({"speeds": {("1/2", "decode"): TimedWorkload(1.0, Measure(1.0), True)}}, "no workload in common"),
    ],
)
def test_speeds_of_different_surroundings_are_refused(change, words):
    with pytest.raises(TrimlineError) as caught:
        comparisons([result("a", 1.5, 3.0), result("b", 1.5, 3.0, **change)])
    assert words in str(caught.value)
    assert "--measure" in str(caught.value)


@pytest.mark.parametrize(("count", "said"), [(8, []), (9, ["Not compared two by two: 36 pairs, where at most 28 are listed."])])
def test_pairs_that_are_too_many_to_list_are_said(count, said, tmp_path):
    found = comparisons([result(f"r{number}", 1 + number / 10, 3.0, seed=number) for number in range(count)])
    assert [note.split(" Name")[0] for note in notes(found)] == said
    assert len(found[0].pairs) + found[0].left_out == count * (count - 1) // 2
    write_comparison(found, [], tmp_path)
    assert ("two by two: 36 pairs" in (tmp_path / "compare.md").read_text(encoding="utf-8")) == bool(said)
    assert read_json(tmp_path / "compare.json")["comparisons"][0]["pairs_left_out"] == (36 if said else 0)


# --- real results --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, its package and a sweep of the same tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        folder = tmp_path_factory.mktemp("made")
        values = changed(recipe("cfsp-least-squares", tiny_inputs(folder / "inputs")), "rebuild", "profile", to="free")
        run(values, folder / "run", options=OPTIONS)
        plain = changed(values, "prune", "steps", 0, "compensation", to="none")
        sweep(plain, {"method": ["cfsp", "flap"], "remove": [0.25, 0.5, 0.75]}, folder / "sweep", options=OPTIONS)
        yield folder


@pytest.mark.slow
def test_a_run_its_package_and_a_point_go_into_one_table(made, tmp_path):
    point = made / "sweep" / "points" / "method=flap,remove=0.5"
    found = compare([made / "run", made / "run" / "package", point], output=tmp_path / "out")
    assert [comparison.axis for comparison in found] == [("4/4", "decode"), ("8/1", "prefill"), ("4/4", "prefill")]
    by_name = {one.name: one for one in found[0].results}
    assert set(by_name) == {"run", "run/package", "flap, remove 0.5"}
    for axis, speed in by_name["run"].speeds.items():
        assert replace(by_name["run/package"].speeds[axis], runs=speed.runs) == speed
        assert list(by_name["run/package"].speeds[axis].runs.values()) == list(speed.runs.values())
    assert by_name["run"].losses == by_name["run/package"].losses
    evaluated = [read_json(path)["window_losses"] for path in (made / "run" / "store").glob("evaluate-*/perplexity.json")]
    assert list(by_name["run"].losses) in evaluated
    assert all(pair.perplexity is not None for pair in found[0].pairs)
    document = read_json(tmp_path / "out" / "compare.json")["comparisons"]
    assert [row["name"] for row in document[0]["results"]] == [one.name for one in found[0].results]
    assert "flap, remove 0.5" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_a_sweeps_folder_stands_for_its_points_and_its_methods_for_lines(made):
    found = compare([made / "run", made / "sweep"])[0]
    assert len(found.results) == 7
    assert {pair.first for pair in found.pairs} == {"run"}
    assert len(found.pairs) == 6
    assert {(one.result, one.series) for one in found.at_speed} == _reached(found.results, found.axis)


def _reached(results, axis):
    """Every result, with every other series whose slowest and fastest points lie on either side of it."""
    speeds = {one.name: one.speeds[axis].speedup.value for one in results}
    lines = {one.series: [speeds[other.name] for other in results if other.series == one.series] for one in results if one.series}
    beside = [(one, series, line) for one in results for series, line in lines.items() if series != one.series]
    return {(one.name, series) for one, series, line in beside if min(line) <= speeds[one.name] <= max(line)}


def test_results_and_lines_of_a_real_sweep_at_made_up_speeds(made):
    results = read_results([made / "run", made / "sweep"])
    axis = ("4/4", "decode")
    speeds = {"": [1.35], "sweep: cfsp": [1.1, 1.3, 1.5], "sweep: flap": [1.2, 1.4, 1.6]}
    moved = []
    for one in results:
        value = speeds[one.series].pop(0)
        speed = replace(one.speeds[axis], speedup=Measure(value, value - 0.01, value + 0.01))
        moved.append(replace(one, speeds={axis: speed}))
    (found,) = comparisons(moved)
    assert {(one.result, one.series) for one in found.at_speed} == {
        ("run", "sweep: cfsp"),
        ("run", "sweep: flap"),
        ("cfsp, remove 0.5", "sweep: flap"),
        ("cfsp, remove 0.75", "sweep: flap"),
        ("flap, remove 0.25", "sweep: cfsp"),
        ("flap, remove 0.5", "sweep: cfsp"),
    }


def test_measured_anew_the_first_is_what_the_others_are_over(made, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
    timing = checked_recipe(recipe("uniform", made / "inputs")).benchmark
    paths = [made / "run" / "package", made / "sweep" / "points" / "method=cfsp,remove=0.75"]
    found = compare(paths, measure=True, recipe=timing, options=OPTIONS, output=tmp_path / "out")[0]
    first = next(one for one in found.results if one.name == "run/package")
    assert first.speeds[found.axis].speedup.value == 1.0
    assert found.pairs[0].paired
    raw = read_json(tmp_path / "out" / "results-1.json")["samples"][found.axis[0]]
    assert list(first.speeds[found.axis].runs.values()) == [tuple(sum(gaps) / len(gaps) for gaps in raw["dense"]["gaps"])]
    assert list(notes([found])) == []


def test_many_results_are_timed_a_few_at_a_time(made, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
    timing = checked_recipe(recipe("uniform", made / "inputs")).benchmark
    names = [f"cfsp, remove {share}" for share in (0.25, 0.5, 0.75)]
    paths = [made / "run", *(made / "sweep" / "points" / f"method=cfsp,remove={share}" for share in (0.25, 0.5, 0.75))]
    compared = compare(paths, measure=True, together=2, recipe=timing, options=OPTIONS, output=tmp_path / "out")
    found, documents = compared[0], [read_json(tmp_path / "out" / f"results-{number}.json") for number in (1, 2)]
    assert [{row["model"] for row in document["comparisons"]} for document in documents] == [set(names[:2]), {names[2]}]
    assert all({"dense", "dense again"} < set(document["samples"][found.axis[0]]) for document in documents)
    paired = {frozenset((pair.first, pair.second)) for pair in found.pairs if pair.paired}
    assert paired == {frozenset(("run", name)) for name in names} | {frozenset(names[:2])}
    over = {one.name: one.speeds[found.axis].speedup for one in found.results}
    for pair in found.pairs:
        if pair.first == "run":  # what stands beside the first is its speed-up over it, of their own run alone
            assert pair.faster == over[pair.second]
    (said,) = notes(compared)
    assert said.startswith("Timed in 2 interleaved runs, run twice in each: ")
    groups = said.split("in each: ")[1].split(". Only")[0].split("; ")
    assert [set(group.split(" beside ")) for group in groups] == [set(names[:2]), {names[2]}]
    assert said in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_what_holds_no_result_is_refused(made, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(command("compare", made / "run", empty), "holds no result", "trimline run")
    assert_refused(command("compare", made / "run"), "nothing to compare it with")
    assert_refused(command("compare", made / "run", made / "run"), "named twice")
    assert_refused(command("compare", made / "run", tmp_path / "none"), "holds no result")
    assert_refused(command("compare", made / "run", made / "sweep" / "points" / "method=none"), "holds no result")


def test_a_run_with_other_threads_is_refused_by_the_command(made, tmp_path):
    data = ReportData.read((made / "run" / "report.html").resolve().parent / "report.json")
    (tmp_path / "other").mkdir()
    replace(data, environment=data.environment | {"threads": "2"}).write(tmp_path / "other" / "report.json")
    assert_refused(command("compare", made / "run", tmp_path / "other"), "threads is 1 for run and 2 for other", "--measure")


def test_the_command_answers_in_json(made):
    called = command("compare", made / "run", made / "sweep", "--json")
    assert called.code == 0, called.stderr
    answer = json.loads(called.stdout.splitlines()[-1])
    assert [row["workload"] for row in answer["comparisons"]] == ["4/4", "8/1", "4/4"]
    assert "the fastest first" in called.stderr


def test_a_clock_that_moves_is_no_other_machine():
    block = environment(2) | {"load_average": {"before": 0.1, "after": 0.2}}
    clocks = [{"frequency_mhz": clock + 0.4, "gpu": [f"NVIDIA H100, 580.1, {clock} MHz, 700 W"]} for clock in (1980, 345)]
    shown = [environment_rows(results(environment=block | clock)) for clock in clocks]
    assert [rows["clock after the timing"] for rows in shown] == ["1980 MHz", "345 MHz"]
    assert shown[0]["hash of what was asked for"] == "abc"
    machines = [machine_of(rows, RECIPE) for rows in shown]
    assert machines[0] == machines[1]
    assert machines[0]["GPU"] == "NVIDIA H100, 580.1"
    assert machine_of(environment_rows(results(environment=block | {"gpu": None})), RECIPE) != machines[0]


def test_a_task_of_a_package_without_a_graph_is_read():
    figure = {"value": 0.5, "error": 0.1, "low": None, "high": None}
    row = {"task": "t", "metric": "acc", "documents": 4, "dense": figure, "pruned": figure, "onnx": None, "difference": figure}
    assert (found := _task_row(row)).onnx is None
    assert found.pruned.value == 0.5
