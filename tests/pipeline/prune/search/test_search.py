"""A search judges what the step would leave, under its budget, keeps what it judged, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import trimline
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import SUBLAYERS, IndexSet, Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import open_paged
from pipeline.plan.plan import Plan
from pipeline.prune.consumer import Consumer
from pipeline.prune.latency import Entry, LatencyTable, Times, identity
from pipeline.prune.measure import measured_part
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.search import search as searching
from pipeline.prune.search.divergence import SizeJudge
from pipeline.prune.stage import check_spaces, make_plan, plans
from pipeline.prune.steps import ANYWHERE, resolve_step, resolve_steps
from tests.pipeline.rebuild.cases import rebuilt
from tests.tiny import VOCAB, tiny_model
from trimline.stages.preflight import shapes_asked_for

WINDOWS = torch.randint(4, VOCAB, (8, 24), generator=torch.Generator().manual_seed(3))
SEARCH = {"evaluations": 40, "offspring": 6, "survivors": [2], "tokens": [48, 192], "levels": 2}
CFSP = {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "round_to": 8, "compensation": "least_squares"}
CASES: dict[str, dict[str, Any]] = {
    "least squares": CFSP,
    "zeros": CFSP | {"compensation": "none"},
    "bias": {"method": "flap", "pooled": {"remove": 0.4, "allow_empty": True}, "round_to": 8, "compensation": "bias"},
    "both spaces": {"method": "cfsp_extended", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"keep": 1}}, "round_to": 8},
    "blocks": {"method": "block_influence", "budget": {"layer": {"keep": 2}}},
    "own method": {"method": "trimline", "pooled": {"remove": 0.4}, "round_to": 8},
}


def shrinking(folder: Path, paged: bool = False) -> ShrinkingModel:
    if paged:
        return ShrinkingModel(*reversed_checkpoint(folder))
    return ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))


def reversed_checkpoint(folder: Path) -> tuple[Any, Checkpoint, Any]:
    model, paging = open_paged(folder, RunOptions(dtype="float32", threads=1), torch.float32)
    return model, Checkpoint(folder), paging


def divergence_of(model: torch.nn.Module, folder: Path, windows: torch.Tensor) -> float:
    """KL from the dense model, token by token."""
    with torch.no_grad():
        dense, found = (
            one(windows, use_cache=False).logits.double().softmax(-1) for one in (load_model(folder, dtype=torch.float32), model)
        )
    return (dense * (dense / found).log()).sum(-1).mean().item()


def planned(model: ShrinkingModel, step: dict[str, Any], work: Path | None = None, consumer: Consumer | None = None) -> Plan:
    steps = resolve_steps(PruneSlice.model_validate({"steps": [step]}), consumer or Consumer())
    *_, last = plans(model, WINDOWS, [replace(one, work=work) for one in steps], Events())
    return last()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_is_judged_is_what_the_step_leaves(case: str, family: str, tmp_path: Path) -> None:
    """But for the method that refits once more: there the search still finds sizes, and what they cost is the budget."""
    folder = tiny_model(family, tmp_path, num_hidden_layers=4)
    plain, model = shrinking(folder), shrinking(folder)
    planned(plain, CASES[case])
    plan = planned(model, CASES[case] | {"search": SEARCH})
    found = plan.steps[0].facts["search"]
    assert found["evaluations"] == 40 or (case == "blocks" and found["evaluations"] < 12), "of blocks there are six choices"
    assert found["divergence"] == sorted(found["divergence"], reverse=True)
    if case != "blocks":  # which may be right at once
        assert found["divergence"][-1] < found["divergence"][0]
        assert found["kept"] != found["from"]
    assert model.current.decoder_parameters() <= plain.current.decoder_parameters()
    if case != "own method":
        assert divergence_of(plain.model, folder, WINDOWS) == pytest.approx(found["divergence"][0], rel=2e-3)
        assert divergence_of(model.model, folder, WINDOWS) == pytest.approx(found["divergence"][-1], rel=2e-3)


@pytest.mark.parametrize("case", ["least squares", "own method"])
def test_what_was_searched_is_rebuilt(case: str, tmp_path: Path) -> None:
    folder = tiny_model("qwen2", tmp_path / "dense")
    plan = planned(shrinking(folder), CASES[case] | {"search": SEARCH | {"evaluations": 12}})
    assert read_json(rebuilt(tmp_path, folder, plan, Profile.FREE) / "gate.json")["passed"]


def test_a_paged_model_is_judged_alike(tmp_path: Path) -> None:
    folder, step = tiny_model("llama", tmp_path), CFSP | {"search": SEARCH | {"evaluations": 16}}
    whole, paged = planned(shrinking(folder), step), planned(shrinking(folder, paged=True), step)
    assert paged.selection == whole.selection
    assert paged.steps[0].facts["search"]["divergence"] == pytest.approx(whole.steps[0].facts["search"]["divergence"], rel=1e-4)


def test_the_live_model_is_as_before_when_the_search_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model("opt", tmp_path)
    model = shrinking(folder)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.model.named_parameters()}
    seen: list[int] = []

    def stopped(self: SizeJudge, places: Any, round_: int) -> float:
        seen.append(1)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return judge(self, places, round_)

    judge = SizeJudge.__call__
    monkeypatch.setattr(SizeJudge, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        planned(model, CASES["bias"] | {"search": SEARCH})
    after = dict(model.model.named_parameters())
    assert set(after) == set(before)
    assert all(after[name] is parameter and torch.equal(parameter, value) for name, (parameter, value) in before.items())


def stopped_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Judging is interrupted at its call of that number, once; an entry for each call so far."""
    asked: list[int] = []
    judge = SizeJudge.__call__

    def counting(self: SizeJudge, places: Any, round_: int) -> float:
        asked.append(1)
        if len(asked) == number:
            raise KeyboardInterrupt
        return judge(self, places, round_)

    monkeypatch.setattr(SizeJudge, "__call__", counting)
    return asked


def test_a_stopped_search_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, step = tiny_model("llama", tmp_path / "dense"), CFSP | {"search": SEARCH}
    whole = planned(shrinking(folder), step, tmp_path / "whole")
    asked = stopped_at(20, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        planned(shrinking(folder), step, tmp_path / "work")
    (log,) = (tmp_path / "work").iterdir()
    kept = log.read_text(encoding="utf-8")
    assert [json.loads(line)["round"] for line in kept.splitlines()][0] == 1
    assert len(kept.splitlines()) == 19
    log.write_text(kept + '{"places": [1, 2', encoding="utf-8")  # as a kill leaves it
    again = planned(shrinking(folder), step, tmp_path / "work")
    assert len(asked) == 20 + 40 - 19
    assert again.steps[0].facts == whole.steps[0].facts
    assert again.selection == whole.selection
    (of_whole,) = (tmp_path / "whole").iterdir()
    without_seconds = [[{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()] for file in (log, of_whole)]
    assert without_seconds[0] == without_seconds[1]


def test_another_seed_shares_what_was_judged_and_other_weights_do_not(tmp_path: Path) -> None:
    folder, step = tiny_model("llama", tmp_path / "dense"), CFSP | {"search": SEARCH | {"evaluations": 10}}
    planned(shrinking(folder), step, tmp_path / "work")
    planned(shrinking(folder), step | {"search": SEARCH | {"evaluations": 10, "seed": 1}}, tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 1
    other = shrinking(folder)
    with torch.no_grad():
        other.model.get_parameter("model.layers.1.self_attn.o_proj.weight").mul_(1.5)
    planned(other, step, tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 2


def test_seconds_end_a_search(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    plan = planned(shrinking(folder), CFSP | {"search": SEARCH | {"evaluations": 10**6, "seconds": 1e-6}})
    assert plan.steps[0].facts["search"]["evaluations"] == 1
    assert plan.steps[0].facts["search"]["kept"] == plan.steps[0].facts["search"]["from"]


def test_a_target_of_time_and_bytes_holds(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=4)
    model = shrinking(folder)
    step = {"method": "trimline", "target": {"parameters": 0.8, "flops": 0.75}, "round_to": 8, "search": SEARCH}
    facts = planned(model, step).steps[0].facts
    assert facts["search"]["kept"] != facts["search"]["from"]
    for measure in ("parameters", "flops"):
        assert facts["target"][measure]["found"] <= facts["target"][measure]["at most"] * (1 + 1e-9)


def test_choices_cost_what_the_target_counts(tmp_path: Path) -> None:
    """And what is held is what no size changes."""
    folder = tiny_model("llama", tmp_path, num_hidden_layers=2)
    model = shrinking(folder)
    step = resolve_step(PruneStep.model_validate({"method": "trimline", "target": {"parameters": 0.8}, "search": SEARCH, "round_to": 8}))
    counts = {IndexSet(space, block): 8 if space is Space.FFN else 1 for block in range(2) for space in (Space.FFN, Space.KV_GROUP)}
    start, levels = searching.levels_from(step, model, counts)
    shapes = dict(enumerate(model.current.blocks))
    for (space, block), count in counts.items():
        shapes[block] = shapes[block].with_units(SUBLAYERS[space], count)
    after = model.current.with_blocks(tuple(shapes.values()))
    held = model.current.with_blocks(
        tuple(shape.with_units(SUBLAYERS[Space.FFN], 0).with_units(SUBLAYERS[Space.KV_GROUP], 0) for shape in shapes.values())
    )
    assert levels.cost("parameters", start) == pytest.approx(after.total_parameters() - held.total_parameters())
    assert levels.limits["parameters"] == pytest.approx(0.8 * model.geometry.total_parameters() - held.total_parameters())


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        ({"method": "laco", "budget": {"layer": {"keep": 3}}, "search": {}}, "decides by itself what goes"),
        (
            {"method": "llm_surgeon", "budget": {"residual": {"keep": 48}}, "search": {}},
            "'search' chooses sizes of ffn, kv_group and layer",
        ),
        (CFSP | {"search": {"tokens": [512, 256]}}, "'tokens' must not fall"),
        (CFSP | {"search": {"survivors": [4, 2]}}, "one entry more than 'survivors'"),
        (CFSP | {"search": {"survivors": [32]}}, "must not rise from round to round, nor above 'offspring'"),
    ],
)
def test_what_cannot_be_searched_is_refused(stated: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TrimlineError, ValueError), match=sentence):
        resolve_step(PruneStep.model_validate(stated))


def test_sizes_that_predict_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model("llama", tmp_path)
    monkeypatch.setattr(SizeJudge, "__call__", lambda *_: float("inf"))
    with pytest.raises(TrimlineError, match="predict what is no number"):
        make_plan(shrinking(folder), WINDOWS, PruneSlice.model_validate({"steps": [CFSP | {"search": SEARCH}]}), Events())


def test_a_target_of_time_holds_by_its_table(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=4)
    model = shrinking(folder)
    times = Times(0.004, (0.0, 0.002, 0.003), (0, 8, 48, 96), (0.0, 0.001, 0.003, 0.005))
    consumer = Consumer(LatencyTable(identity(model.geometry), {}, (Entry("8/5", "decode", 4, times),)))
    step = {"method": "cfsp_extended", "target": {"speedup": 1.3}, "round_to": 8, "search": SEARCH}
    facts = planned(model, step, consumer=consumer).steps[0].facts
    assert facts["search"]["kept"] != facts["search"]["from"]
    assert consumer.table is not None
    found = consumer.table.predict(model.current, "decode")
    assert facts["target"]["latency_ms"]["found"] == pytest.approx(1e3 * found)
    assert found <= consumer.table.predict(model.geometry, "decode") / 1.3 * (1 + 1e-9)


def test_a_stopped_call_of_the_api_leaves_what_was_judged_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out, work = tiny_model("llama", tmp_path / "dense"), tmp_path / "plan", tmp_path / ".work-plan"
    wanted = {
        "prune": {"calibration": {"token_ids": WINDOWS.remainder(100).tolist()}, "steps": [CFSP | {"search": SEARCH}]},
        "rebuild": {"profile": "decilm"},
    }
    options = RunOptions(dtype="float32", threads=1)
    asked = stopped_at(10, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trimline.prune(wanted, out, model=folder, options=options)
    assert not out.exists()
    (log,) = work.glob("search/*.jsonl")
    assert len(log.read_text(encoding="utf-8").splitlines()) == 9
    plan = trimline.prune(wanted, out, model=folder, options=options)
    assert len(asked) == 10 + 40 - 9
    assert plan.steps[0].facts["search"]["evaluations"] == 40
    assert not work.exists()


def test_a_search_makes_blocks_uneven_and_the_profile_must_hold_that() -> None:
    uniform = {"method": "taylor", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.5}}}
    plain, searched = ([resolve_step(PruneStep.model_validate(uniform | more))] for more in ({}, {"search": {}}))
    assert shapes_asked_for(plain, Profile.UNIFORM) == (False, False, True)
    assert shapes_asked_for(searched, Profile.UNIFORM) == (True, True, True)
    pooled = {"method": "flap", "options": {"structure": "UL-UM"}, "pooled": {"remove": 0.3}}
    plain, searched = ([resolve_step(PruneStep.model_validate(pooled | more))] for more in ({}, {"search": {}}))
    assert shapes_asked_for(plain, Profile.UNIFORM)[:2] == (False, False)
    assert shapes_asked_for(searched, Profile.UNIFORM)[:2] == (True, True)


def test_another_search_measures_nothing_anew(tmp_path: Path) -> None:
    geometry = Checkpoint(tiny_model("llama", tmp_path)).geometry
    parts = [
        measured_part(PruneSlice.model_validate({"steps": [CFSP | more]}), geometry) for more in ({}, {"search": {}}, {"search": SEARCH})
    ]
    assert parts[0] is not None
    assert parts[0] == parts[1] == parts[2]


@pytest.mark.parametrize("name", ["lfm2", "youtu", "falcon_h1", "qwen2_moe", "qwen3_moe", "glm4_moe"])
def test_whole_blocks_with_more_than_attention_and_an_ffn_are_not_searched(tmp_path: Path, name: str) -> None:
    """A choice is judged with two silenced readers, and these blocks would go on adding to the stream."""
    geometry = Checkpoint(tiny_model(name, tmp_path)).geometry
    step = {"method": "block_influence", "budget": {"layer": {"keep": 3}}, "search": SEARCH}
    with pytest.raises(TrimlineError, match=f"cannot choose among whole blocks of {name}"):
        check_spaces(resolve_steps(PruneSlice.model_validate({"steps": [step]}), ANYWHERE), geometry)


@pytest.mark.parametrize("space", ["expert", "residual", "weight"])
def test_spaces_without_sizes_of_their_own_are_not_searched(space: str) -> None:
    with pytest.raises(ValidationError, match="'search' chooses sizes of ffn, kv_group and layer"):
        PruneSlice.model_validate({"steps": [{"method": "reap", "budget": {space: {"remove": 0.25}}, "search": SEARCH}]})
