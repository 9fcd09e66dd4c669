"""A sweep on a tiny model: shared stages run once, failures stay their own, the same command goes on, the page says what was found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import benchmarks.stage
import trimline.stages.table
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.plan.plan import Plan
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_refused, changed, computed_files, recipe, tiny_inputs, written
from tests.end_to_end.scenario import trimline as command
from tests.trimline.sweeps.sample_sweep import sample_sweep
from trimline.api import run, sweep
from trimline.reporting.data import TargetRow
from trimline.sweeps.data import SweepData
from trimline.sweeps.page import render_sweep
from trimline.sweeps.tables import columns, lines, short_table

STEP = ("prune", "steps", 0)
GRID = {"method": ["cfsp", "flap"], "remove": [0.25, 0.5]}


@pytest.fixture(scope="module", autouse=True)
def _quick_measuring():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def values(inputs):
    plain = recipe("cfsp-least-squares", inputs)
    plain["rebuild"] = {"profile": "free"}
    return changed(plain, *STEP, "compensation", to="none")


@pytest.fixture(scope="module")
def swept(values, tmp_path_factory):
    """(folder, what was found, events told)."""
    folder, told = tmp_path_factory.mktemp("swept") / "out", []
    found = sweep(values, GRID, folder, options=OPTIONS, events=Events(told.append), together=3)
    return folder, found, told


def started(told: list[Event]) -> list[str]:
    return [event.stage for event in told if event.kind == "stage_started"]


def test_every_stage_with_the_same_hash_runs_once(swept):
    folder, _, told = swept
    stages = started(told)
    for stage in ("source", "text", "evaluate (dense)", "export (dense)"):
        assert stages.count(stage) == 1
    for stage in ("prune", "rebuild", "evaluate (pruned)", "export (pruned)"):
        assert stages.count(stage) == 4
    made = [path.name.split("-")[0] for path in (folder / "store").glob("*-*")]
    assert sorted(made) == sorted(
        [*["prune", "rebuild"] * 4, *["measure"] * 2, *["evaluate", "export"] * 5, "source", "text", "benchmark", "benchmark"]
    )


def test_points_have_perplexities_widths_and_speeds_against_dense_in_the_same_run(swept):
    folder, found, _ = swept
    assert [point.name for point in found.points] == [f"method={m},remove={r}" for m in GRID["method"] for r in GRID["remove"]]
    for point in found.points:
        assert point.failure == point.untimed == ""
        kept = sum(block.ffn for block in point.blocks) / sum(block.dense_ffn for block in point.blocks)
        assert kept == pytest.approx(1 - point.settings["remove"], abs=0.03)
        assert {speed.axis for speed in point.speeds} == {("8/1", "prefill"), ("4/4", "prefill"), ("4/4", "decode")}
        for speed in point.speeds:
            results = read_json(folder / speed.run / "results.json")
            assert "dense again" in results["samples"][speed.workload]
            row = next(r for r in results["comparisons"] if (r["model"], r["workload"], r["metric"]) == (point.name, *speed.axis))
            assert speed.speedup.value == row["speed_up"]["value"]
    runs = [{speed.run for speed in point.speeds} for point in found.points]
    assert runs[0] == runs[1] == runs[2] != runs[3]  # three together


def test_the_interval_of_a_perplexity_is_that_of_its_ratio_to_dense(swept):
    import math

    from scipy.stats import ttest_rel

    _, found, _ = swept
    for point in found.points:
        interval = ttest_rel(point.window_losses, found.dense.window_losses).confidence_interval(0.95)
        expected = [found.dense.perplexity.value * math.exp(end) for end in (interval.low, interval.high)]
        assert [point.perplexity.low, point.perplexity.high] == pytest.approx(expected)


def test_tasks_of_the_harness_are_columns_beside_dense():
    data = sample_sweep()
    titles = [column.title for column in columns(data)]
    place = titles.index("opposites, acc ↑")
    cells = {line.name: line.cells[place] for line in lines(data)}
    assert (cells["dense"].value, cells["dense"].cell.whole) == (0.62, "0.62 ± 0.02")
    assert cells["method=cfsp,remove=0.2"].value == pytest.approx(0.52)
    assert cells["method=flap,remove=0.3"].value is None  # that one was not asked
    assert json.dumps("0.52 ± 0.02; against dense −0.1 ± 0.03") in render_sweep(data)


def test_what_became_of_a_target_stands_beside_the_speed():
    data = sample_sweep()
    assert "Target" not in [column.title for column in columns(data)]
    outcomes = ("met", "missed: 4.1% slower than asked", "not resolved: the interval reaches out of the band")
    given = {place: (TargetRow("decode 1.4 times as fast", "1.4× (1.39 to 1.41)", outcome),) for place, outcome in enumerate(outcomes)}
    data = replace(data, points=tuple(replace(point, targets=given.get(place, ())) for place, point in enumerate(data.points)))
    place = [column.title for column in columns(data)].index("Target")
    cells = [line.cells[place].cell for line in lines(data)]
    assert [(cell.text, cell.tone) for cell in cells[:5]] == [
        ("–", "quiet"), (outcomes[0], "good"), (outcomes[1], "bad"), (outcomes[2], "quiet"), ("–", "quiet"),
    ]  # fmt: skip
    assert short_table(data).columns[-1].title == "On the front"
    assert "decode 1.4 times as fast" in render_sweep(data)


def test_running_again_makes_and_times_nothing(swept, values):
    folder, found, _ = swept
    before, told = computed_files(folder), []
    again = sweep(values, GRID, folder, options=OPTIONS, events=Events(told.append), together=3)
    assert started(told) == []
    assert again.points == found.points
    assert computed_files(folder) == before


def test_a_larger_grid_only_adds(swept, values):
    folder, found, _ = swept
    told = []
    larger = sweep(values, GRID | {"remove": [0.25, 0.5, 0.75]}, folder, options=OPTIONS, events=Events(told.append), together=3)
    stages = started(told)
    assert stages.count("prune") == stages.count("export (pruned)") == 2
    assert [stage for stage in stages if "benchmark" in stage] == ["benchmark (2 points)"]
    kept = {point.name: point for point in larger.points}
    assert all(kept[point.name].speeds == point.speeds for point in found.points)


def test_the_folder_holds_page_data_and_recipes(swept, values):
    folder, found, _ = swept
    sweep(values, GRID, folder, options=OPTIONS, together=3)
    assert SweepData.read(folder / "sweep.json").points == found.points
    page, text = (folder / "sweep.html").read_text(encoding="utf-8"), (folder / "sweep.md").read_text(encoding="utf-8")
    assert 'http-equiv="Content-Security-Policy"' in page
    assert "src=" not in page.split("<script>")[0]
    for name in ("cfsp", "flap"):
        assert name in page
        assert f"| {name} | 0.25 |" in text
    assert sorted(path.name for path in (folder / "points").iterdir()) == sorted(point.name for point in found.points)


def test_a_points_recipe_gives_its_package_without_pruning_again(swept):
    folder, found, _ = swept
    told = []
    result = run(folder / "points" / found.points[1].name / "recipe.yaml", folder, options=OPTIONS, events=Events(told.append))
    assert set(started(told)) == {"benchmark", "report", "package"}
    assert (result.package / "manifest.json").is_file()


def test_a_point_that_fails_says_why_and_the_others_go_on(values, tmp_path, monkeypatch):
    broken = trimline.stages.table.rebuild

    def failing(source, plan, *rest):
        if Plan.read(plan).steps[0].recipe["method"] == "flap":
            raise TrimlineError("No room for flap.", "Make some.")
        broken(source, plan, *rest)

    monkeypatch.setattr(trimline.stages.table, "rebuild", failing)
    grid = {"method": ["flap", "cfsp", "laco"], "remove": [0.5]}
    found = sweep(values, grid, tmp_path / "out", options=OPTIONS)
    failures = {point.settings["method"]: point.failure for point in found.points}
    assert failures["flap"] == "No room for flap. Make some."
    assert "does not score ffn" in failures["laco"]
    assert failures["cfsp"] == ""
    assert found.point("method=cfsp,remove=0.5").speeds
    assert "No room for flap." in (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")
    monkeypatch.setattr(trimline.stages.table, "rebuild", broken)
    told = []
    mended = sweep(values, grid, tmp_path / "out", options=OPTIONS, events=Events(told.append))
    assert started(told) == ["rebuild", "evaluate (pruned)", "export (pruned)", "benchmark (1 points)"]
    assert [point.settings["method"] for point in mended.points if point.failure] == ["laco"]


def test_a_dense_model_that_fails_ends_the_sweep(values, tmp_path):
    with pytest.raises(TrimlineError, match="evaluation asks for"):
        sweep(changed(values, "evaluate", "windows", to=10_000), GRID, tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out" / "sweep.html").exists()


@pytest.mark.slow
def test_points_that_share_a_model_share_it(values, tmp_path):
    told = []
    grid = {"export.precision": ["fp32", "int4"]}
    sweep(changed(values, "export", to={"perplexity_bar": 10.0}), grid, tmp_path / "out", options=OPTIONS, events=Events(told.append))
    stages = started(told)
    assert stages.count("prune") == stages.count("rebuild") == stages.count("evaluate (pruned)") == 1
    assert stages.count("export (pruned)") == 2


@pytest.mark.slow
def test_calibration_in_parts_is_shared_by_budgets_and_gives_the_same_plan(swept, values, tmp_path):
    folder, found, _ = swept
    told = []
    parts = sweep(values, GRID, tmp_path / "out", options=OPTIONS, events=Events(told.append), shards=3)
    stages = started(told)
    assert [stage for stage in stages if stage.startswith("statistics")] == [f"statistics ({n} of 3)" for n in range(3)]
    assert stages.count("measure") == 2
    assert any("flap" in event.text and "in one part" in event.text for event in told)
    for point in parts.points:
        assert point.failure == ""
        assert point.blocks == found.point(point.name).blocks
        assert point.perplexity.value == pytest.approx(found.point(point.name).perplexity.value, rel=1e-4)


@pytest.mark.slow
def test_stages_that_time_wait_until_nothing_else_runs(swept, values, tmp_path, monkeypatch):
    """With the export standing for such a stage: all that is not timed comes first, and the artefacts are the same."""
    folder, _, _ = swept
    monkeypatch.setattr("trimline.sweeps.schedule.TIMED", frozenset({"export"}))
    told = []
    found = sweep(values, GRID, tmp_path / "out", options=OPTIONS, events=Events(told.append), together=3)
    stages = [stage.split(" ")[0] for stage in started(told)]
    first = stages.index("export")
    assert stages[:first].count("rebuild") == 4
    assert set(stages[first:]) == {"export", "benchmark"}
    assert all(point.speeds for point in found.points)
    assert computed_files(tmp_path / "out").items() <= computed_files(folder).items()


# --- the command line ----------------------------------------------------------------------------------------------


def test_the_command_prints_the_points_and_its_exit_code_tells_of_failures(values, tmp_path):
    path = written(values, tmp_path)
    options = ("--threads", 1, "--dtype", "float32", "--json")
    called = command("sweep", path, "--grid", "method=cfsp,laco", "--output", tmp_path / "out", *options)
    assert_refused(called, "1 of 2 points failed", "method=laco", "does not score ffn")
    answer = json.loads(called.stdout.splitlines()[-1])
    assert answer["points"]["method=laco"]["failure"]
    assert answer["points"]["method=cfsp"]["perplexity"] > 1
    assert (tmp_path / "out" / "sweep.html").is_file()
    called = command("sweep", path, "--grid", "method=cfsp", "--output", tmp_path / "out", *options)
    assert called.code == 0, called.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "prune.steps.0.methd=cfsp"], ["unknown key 'prune.steps.0.methd'", "'method'"]),
        ([], ["has no grid"]),
        (["--grid", "remove=2"], ["wrong value"]),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_written(values, tmp_path, arguments, words):
    called = command("sweep", written(values, tmp_path), "--output", tmp_path / "out", *arguments)
    assert_refused(called, *words)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there_is_said_to_be_missing(tmp_path):
    assert_refused(command("sweep", tmp_path / "none.yaml", "--grid", "method=cfsp", "--output", tmp_path / "out"), "There is no recipe")
