"""When a run goes on after a speed was missed, with what, and which round counts."""

from __future__ import annotations

from pathlib import Path

import pytest

import trimline.stages.rounds
from benchmarks.results.target import Judgement
from pipeline.artefacts.artefact import Artefact
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from trimline.recipe import checked_recipe
from trimline.stages.names import DENSE, PLAN, TIMINGS, Name, export_of
from trimline.stages.rounds import corrected, stated, timed_step, until_met

STEP = {"method": "trimline", "target": {"speedup": 1.3}}


class FakeRun:
    """A run whose stages only count; its sizes change with the speed that is asked for, in tenths."""

    def __init__(self, *steps: dict) -> None:
        self.recipe = checked_recipe({"prune": {"steps": list(steps or (STEP,))}, "rebuild": {"profile": "free"}})
        self.said: list[Event] = []
        self.events = Events(self.said.append)
        self.done: dict[Name, Artefact] = {}
        self.given: list[float | None] = []
        self.most = 2.0

    def prune(self, wanted=None) -> None:
        target = wanted.steps[0].target
        asked = target.speedup if target else None
        if asked and asked > self.most:
            raise TrimlineError("The target cannot be met.", "Ask for less.")
        self.given.append(asked)
        self._made(PLAN, str(asked and round(asked, 1)))

    def after_prune(self) -> None:
        self._made(TIMINGS, str(len(self.given)))
        self._made(export_of(DENSE), "dense")

    def _made(self, name: Name, key: str) -> None:
        self.done[name] = Artefact(name.stage, key, Path(name.stage), 1.0)


@pytest.fixture
def given(monkeypatch):
    """Speeds that are measured, one per round, and whether the control holds."""

    def speeds(*values: float, holds: bool = True) -> None:
        left = list(values)
        monkeypatch.setattr(trimline.stages.rounds, "read", lambda path: {})
        monkeypatch.setattr(trimline.stages.rounds, "_selection", lambda run: run.done[PLAN].key)
        monkeypatch.setattr(
            trimline.stages.rounds,
            "judge",
            lambda results, target, model: (Judgement("speedup", "decode", 1.3, *[left.pop(0)] * 3, holds),),
        )

    return speeds


@pytest.mark.parametrize(
    ("speeds", "asked", "best"),
    [
        ((1.30,), [1.3], 0),
        ((1.33,), [1.3], 0),
        ((1.2, 1.31), [1.3, 1.408], 1),
        ((1.2, 1.1, 1.15), [1.3, 1.408, 1.664], 0),  # twice again at most, and the nearest counts
        ((1.5, 1.29), [1.3, 1.127], 1),
        ((1.26, 1.3), [1.3], 0),  # within three per cent and a little: 1.26 is out, but the sizes would be the same
        ((0.5,), [1.3], 0),  # 3.38 cannot be met
    ],
)
def test_it_goes_on_as_long_as_that_helps(given, speeds, asked, best) -> None:
    given(*speeds)
    run = FakeRun()
    rounds = until_met(run)
    assert [one.given.speedup for one in rounds] == pytest.approx(asked, abs=1e-3)
    assert run.done[TIMINGS] == rounds[best].done[TIMINGS]
    assert run.done[PLAN] == rounds[best].done[PLAN]
    others = {f"benchmark, round {number + 1}" for number in range(len(rounds)) if number != best}
    names = set(map(str, run.done))
    assert others <= names
    assert not any(name.startswith("export dense,") for name in names)
    assert run.said[-1].text.startswith("target decode 1.3 times as fast: measured")


def test_noise_is_no_reason_to_go_on(given) -> None:
    given(1.1, holds=False)
    (only,) = until_met(FakeRun())
    assert only.judgements[0].outcome == "not resolved"


def test_why_it_ends_is_said(given) -> None:
    given(0.5)
    run = FakeRun()
    until_met(run)
    assert any("no further round: The target cannot be met." in event.text for event in run.said)
    given(1.26)
    until_met(run := FakeRun())
    assert any("no sizes nearer" in event.text for event in run.said)


def test_without_a_target_of_time_there_is_one_round(given) -> None:
    given()
    for step in ({"budget": {"ffn": {"remove": 0.1}}}, {"method": "trimline", "target": {"parameters": 0.9}}):
        run = FakeRun(step)
        assert until_met(run) == ()
        assert run.given == [None]


def test_only_the_last_target_of_time_is_corrected() -> None:
    recipe = FakeRun(STEP, STEP | {"target": {"latency_ms": 9.0, "flops": 0.5}}, {"budget": {"ffn": {"remove": 0.1}}}).recipe.prune
    assert timed_step(recipe) == 1
    found = corrected(recipe, 1, (Judgement("latency_ms", "prefill", 9.0, 10.0, 10.0, 10.0, True),))
    assert found.steps[0] == recipe.steps[0]
    assert (found.steps[1].target.latency_ms, found.steps[1].target.flops) == (pytest.approx(8.1), 0.5)
    assert stated(Judgement("latency_ms", "prefill", 9.0, 10.0, 10.0, 10.0, True)) == "prefill in 9 ms"
