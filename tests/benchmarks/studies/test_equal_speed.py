"""Systems at the same measured speed: what they are asked for, what is made again, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.latency.stage import setting_of
from benchmarks.studies.equal_speed import __main__ as equal_speed
from benchmarks.studies.equal_speed.__main__ import TimedSpeed, at_speed, lines, speeds, timed
from benchmarks.studies.equal_speed.rows import SpeedRow, asked_of, form_of, shots_by_speed
from benchmarks.studies.serving.genai_client import Seconds
from benchmarks.studies.systems import __main__ as systems
from benchmarks.studies.systems.asking import TILE, ffn_alone, pooled
from benchmarks.studies.systems.measure import Setting
from benchmarks.studies.systems.systems import OURS, SYSTEMS, System
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.architecture.families import FAMILIES
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.spaces import Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.prune.latency import Entry, LatencyTable, Times, identity
from pipeline.prune.steps import resolve_step, resolve_steps
from pipeline.sources.recipe import CalibrationWindows
from tests.tiny import tiny_model

SMOL = Geometry(FAMILIES["llama"], 576, 64, 3, 49152, True, 0, (BlockShape(1536, 3),) * 30, {})
UNITS = tuple(system for system in SYSTEMS if system.smaller)
BY_NAME = {system.name: system for system in SYSTEMS}
STEADY = [0.1 + 0.0001 * (number % 3) for number in range(30)]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    calibration, evaluation = CalibrationWindows(windows=4, window=64), EvaluateSlice(windows=3, window=64)
    return Setting(tmp_path, tmp_path, {"model": "m"}, calibration, evaluation, RunOptions(threads=1), tmp_path, tmp_path)


@pytest.mark.parametrize("system", UNITS, ids=lambda system: system.name)
def test_every_system_is_asked_for_a_speed_as_for_a_size(system: System, setting: Setting) -> None:
    (asked,) = asked_of([system], [1.4])
    recipe = asked.recipe(setting, SMOL)
    (step,), (resolved,) = recipe.steps, resolve_steps(recipe)
    assert system.smaller is not None
    usual = system.smaller(SMOL, 0.2)[0]
    assert step.target is not None
    assert (step.target.speedup, step.target.workload, resolved.spaces) == (1.4, "decode", resolve_step(usual).spaces)
    assert (step.method, step.compensation, step.options, step.round_to) == (
        usual.method,
        usual.compensation,
        usual.options,
        usual.round_to,
    )


def test_a_system_of_several_shots_goes_through_all_speeds_in_one_run(setting: Setting) -> None:
    rows = asked_of([BY_NAME["llm_surgeon"], BY_NAME["cfsp"]], [1.7, 1.2, 1.4])
    assert [row.name for row in rows] == [f"{name}-{s}" for s in (1.2, 1.4, 1.7) for name in ("llm_surgeon", "cfsp")]
    surgeon = [row for row in rows if row.system.name == "llm_surgeon"]
    assert [row.shot for row in surgeon] == [3, 5, 7]
    one, *others = (row.recipe(setting, SMOL) for row in surgeon)
    assert others == [one, one]
    assert [(step.target.speedup, step.shots, step.compensation) for step in one.steps if step.target] == [
        (1.2, 3, "least_squares"),
        (1.4, 2, "least_squares"),
        (1.7, 2, "least_squares"),
    ]
    assert all(row.shot is None and row.is_alone for row in rows if row.system.name == "cfsp")


def test_shots_are_shared_out_by_the_time_that_goes() -> None:
    assert shots_by_speed([1.2, 1.4, 1.7], 7) == (3, 2, 2)
    assert shots_by_speed([2.0], 7) == (7,)
    assert shots_by_speed([1.01, 2.0], 5) == (1, 5)  # none goes without


def test_zeros_are_no_speed_and_neither_is_a_typing_error() -> None:
    with pytest.raises(TrimlineError, match="Wanda puts zeros"):
        asked_of([BY_NAME["wanda"]], [1.2])
    assert speeds("1.2,1.4") == (1.2, 1.4)
    for wrong in ("", "fast", "0.9,1.2", "1.2,1.2"):
        with pytest.raises(TrimlineError, match="no list of speed-ups"):
            speeds(wrong)


# --- what is made of the client's times --------------------------------------------------------------------------------


def seen(decode: dict[str, float], control: float = 1.0) -> TimedSpeed:
    """A client's view of models that are so many times as fast as dense."""
    of_phase = {DENSE: STEADY, CONTROL: [t * control for t in STEADY]} | {name: [t / s for t in STEADY] for name, s in decode.items()}
    return TimedSpeed({"prefill": of_phase, "decode": of_phase}, {})


def record(system: System, loss: float) -> dict[str, Any]:
    losses = [loss + 0.1 * number for number in range(3)]
    perplexity = {"perplexity": 20.0, "standard_error": 1.0, "window_losses": losses}
    start = {"name": f"{system.name}-1.4", "system": system.name, "title": system.title, "asked": 1.4}
    return start | {"parameters": 10**8, "perplexity": perplexity}


@pytest.mark.parametrize(
    ("theirs", "loss", "control", "said"),
    [
        (1.40, 3.1, 1.0, "reached"),
        (1.40, 2.9, 1.0, "missed"),
        (1.40, 3.1, 1.1, "not resolved"),
        (1.30, 3.1, 1.0, "reached"),  # slower and worse
    ],
)
def test_a_published_row_is_compared_at_its_speed(theirs: float, loss: float, control: float, said: str) -> None:
    published, ours = record(BY_NAME["cfsp"], loss), record(BY_NAME[OURS], 3.0)
    first, second = lines([published, ours], seen({published["name"]: theirs, ours["name"]: 1.4}, control))
    assert (first[1], first[-1]) == ("CFSP", said)
    assert second[-4:] == ["–"] * 4
    assert second[3] == ("met" if control == 1.0 else "not resolved")


def test_a_faster_row_is_compared_with_one_of_ours_that_is_as_fast() -> None:
    published, ours = record(BY_NAME["cfsp"], 3.1), record(BY_NAME[OURS], 3.0)
    fast = {published["name"]: 1.5, ours["name"]: 1.4}
    assert lines([published, ours], seen(fast))[0][-4:] == ["none is as fast", "–", "–", "not resolved"]
    further = record(BY_NAME[OURS], 3.2) | {"name": "trimline-1.5", "asked": 1.5, "parameters": 10**7}
    assert lines([published, ours, further], seen(fast | {"trimline-1.5": 1.5}))[0][-4::3] == ["1.5", "missed"]
    rows = asked_of([BY_NAME["cfsp"], BY_NAME[OURS]], [1.2, 1.7], [1.1, 1.42, 1.44, 1.9])
    assert [(row.speedup, row.beside) for row in rows[4:]] == [(1.1, 1.2), (1.42, 1.2), (1.44, 1.7), (1.9, 1.7)]


def test_a_row_that_is_off_is_given_another_speed_and_a_run_through_all_is_not(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [row for row in asked_of([BY_NAME[name] for name in ("cfsp", "llm_surgeon", OURS)], [1.2, 1.4]) if row.speedup == 1.4]
    made: list[dict[str, float]] = []

    def row_of(one: SpeedRow, *_: Any) -> dict[str, Any]:
        return record(one.system, 3.0) | {"given": one.given}

    def timed(records: list[dict[str, Any]], *_: Any) -> TimedSpeed:
        made.append({found["system"]: found["given"] for found in records[1:]})
        slower = {"cfsp": 0.9, "llm_surgeon": 0.9, OURS: 1.01}  # than the table says
        return seen({found["name"]: found["given"] * slower[found["system"]] for found in records[1:]})

    monkeypatch.setattr(equal_speed, "row_of", row_of)
    monkeypatch.setattr(equal_speed, "timed", timed)
    records, found = at_speed(asked, {"name": DENSE}, setting, Path("table"), 30)
    assert [row["cfsp"] for row in made] == pytest.approx([1.4, 1.4 / 0.9])
    assert {row["llm_surgeon"] for row in made} == {row[OURS] for row in made} == {1.4}
    assert found.over_dense("cfsp-1.4").value == pytest.approx(1.4)
    assert {row["name"]: found.judged(row).outcome for row in records} == {
        "cfsp-1.4": "met",
        "llm_surgeon-1.4": "missed",
        "trimline-1.4": "met",
    }


def test_a_timing_takes_more_rounds_while_dense_disagrees_with_itself_and_is_kept(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def measured(folders: Mapping[str, Path], prompt: int, output: int, rounds: int, threads: int, seed: int) -> Seconds:
        asked.append((rounds, seed))
        again = 1.05 if len(asked) == 1 else 1.0
        return {phase: {DENSE: [1.0] * rounds, CONTROL: [again] * rounds, "cfsp-1.4": [0.7] * rounds} for phase in ("prefill", "decode")}

    monkeypatch.setattr(equal_speed, "measured", measured)
    records = [{"name": name, "key": name} for name in (DENSE, "cfsp-1.4")]
    for _ in range(2):
        found = timed(records, setting, 28)
        assert asked == [(30, 0), (30, 30), (30, 60)]
        assert found.holds()
        assert found.over_dense("cfsp-1.4").openings == 30


# --- the whole command ---------------------------------------------------------------------------------------------------

TINY = (
    System("shots", "Shots", pooled("flap", spaces=(Space.FFN,)), through=0.5, shots=2),
    System(OURS, "Trimline", ffn_alone("magnitude")),
)


@pytest.mark.slow
def test_the_command_prunes_times_and_judges_and_keeps_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    tiny_model("llama", tmp_path / "dense", intermediate_size=256, max_position_embeddings=1024)
    for name, words in (("calibration", "one two three "), ("evaluation", "other words are here ")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{words}{number} " for number in range(60)), encoding="utf-8")
    (tmp_path / "page.md").write_text("<!-- equal-speed:begin -->\n<!-- equal-speed:end -->\n", encoding="utf-8")
    geometry = Checkpoint(tmp_path / "dense").geometry
    form = form_of(replace(_nothing(tmp_path), options=RunOptions(threads=1)), 300.0)
    times = Times(0.002, (0.0, 0.001, 0.002), (0, 64, 128, 192, 256), (0.0, 0.001, 0.002, 0.003, 0.004))
    entries = (Entry("128/17", "prefill", 16, times), Entry("128/17", "decode", 16, times))
    facts = setting_of(geometry, form, TILE) | {"precision": "fp32", "control_holds": True}
    LatencyTable(identity(geometry), facts, entries).write(tmp_path)
    monkeypatch.setattr(systems, "SYSTEMS", TINY)
    for _ in range(2):
        equal_speed.main(
            str(tmp_path / "dense"),
            str(tmp_path / "calibration.txt"),
            str(tmp_path / "evaluation.txt"),
            tmp_path / "work",
            tmp_path / "records",
            only=["shots"],
            speedups="1.2,1.5",
            table=tmp_path,
            calibration_windows=4,
            evaluation_windows=3,
            window=64,
            rounds=2,
            again=0,
            threads=1,
            page=tmp_path / "page.md",
        )
    rows = {place.stem: json.loads(place.read_text()) for place in (tmp_path / "records").glob("*-1.*.json")}
    assert set(rows) == {"shots-1.2", "shots-1.5", "trimline-1.2", "trimline-1.5"}
    predicted = {name: times.whole(geometry) / times.whole(geometry.with_blocks(_blocks(row))) for name, row in rows.items()}
    assert all(predicted[name] >= row["asked"] for name, row in rows.items())
    assert predicted["shots-1.2"] < predicted["shots-1.5"]
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0:2] for line in page.splitlines() if line.startswith("| 1.")] == [
        ["| 1.2", "Shots"],
        ["| 1.2", "Trimline"],
        ["| 1.5", "Shots"],
        ["| 1.5", "Trimline"],
    ]
    assert "not resolved" in page  # two rounds resolve nothing
    with pytest.raises(typer.Exit):
        equal_speed.main(str(tmp_path / "dense"), work=tmp_path / "other", records=tmp_path / "other", only=["wandb"], threads=1)
    assert not (tmp_path / "other").exists()


def _blocks(row: dict[str, Any]) -> tuple[BlockShape, ...]:
    return tuple(BlockShape(*block) for block in row["shape"]["blocks"])


def _nothing(folder: Path) -> Setting:
    return Setting(folder, folder, {}, CalibrationWindows(), EvaluateSlice(), RunOptions(), folder, folder)
