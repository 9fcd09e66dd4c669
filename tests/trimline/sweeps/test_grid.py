"""The grid of a sweep: which recipes it makes and what it refuses; the front and its knee."""

from __future__ import annotations

import json
import math

import pytest

from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from trimline.recipe import checked_recipe
from trimline.stages.names import SOURCE
from trimline.sweeps.front import FrontPoint, knee, pareto
from trimline.sweeps.grid import axes_of, grid_points, parse_grid
from trimline.sweeps.tasks import Task

ONE_BUDGET = {"prune": {"steps": [{"method": "cfsp", "budget": {"ffn": {"remove": 0.3}}}]}}
TWO_BUDGETS = {"prune": {"steps": [{"method": "flap", "budget": {"ffn": {"remove": 0.3}, "kv_group": {"remove": 0.3}}}]}}
POOLED = {"prune": {"steps": [{"method": "trimline", "pooled": {"remove": 0.3}}]}}


def points(values, *grid):
    return grid_points(values, parse_grid(grid), "r.yaml")[1]


def test_every_combination_is_a_recipe():
    found = points(ONE_BUDGET, "method=cfsp,flap", "prune.steps.0.budget.ffn.remove=0.2,0.4")
    assert [(point.recipe.prune.steps[0].method, point.recipe.prune.steps[0].budget["ffn"].remove) for point in found] == [
        ("cfsp", 0.2),
        ("cfsp", 0.4),
        ("flap", 0.2),
        ("flap", 0.4),
    ]
    assert [point.name for point in found][1] == "method=cfsp,budget.ffn.remove=0.4"
    assert axes_of(found) == {"method": ["cfsp", "flap"], "prune.steps.0.budget.ffn.remove": [0.2, 0.4]}
    assert ONE_BUDGET["prune"]["steps"][0]["budget"] == {"ffn": {"remove": 0.3}}  # the recipe itself is left alone


def test_short_names_find_their_places():
    assert points(ONE_BUDGET, "remove=0.2")[0].recipe.prune.steps[0].budget["ffn"].remove == 0.2
    assert points(POOLED, "remove=0.2")[0].recipe.prune.steps[0].pooled.remove == 0.2


def test_a_grid_that_states_the_amount_in_another_way_takes_the_place_of_the_recipes():
    step = points(ONE_BUDGET, "prune.steps.0.pooled.remove=0.2")[0].recipe.prune.steps[0]
    assert (step.pooled.remove, dict(step.budget)) == (0.2, {})
    assert points(POOLED, "prune.steps.0.budget.ffn.remove=0.2")[0].recipe.prune.steps[0].pooled is None


def test_parts_that_a_recipe_leaves_out_are_made():
    found = points(ONE_BUDGET, "recover.kind=lora,full", "export.precision=int4")
    assert [point.recipe.recover.kind for point in found] == ["lora", "full"]
    assert {point.recipe.export.precision for point in found} == {"int4"}


def test_values_are_yaml():
    found = points(ONE_BUDGET, "prune.steps.0.budget={ffn: {keep: [8, 9]}},{kv_group: {remove: 0.5}}")
    assert found[0].recipe.prune.steps[0].budget["ffn"].keep == (8, 9)
    assert len({point.name for point in found}) == 2
    assert all("/" not in point.name and " " not in point.name for point in found)


@pytest.mark.parametrize(
    ("values", "grid", "words"),
    [
        (ONE_BUDGET, [], ["has no grid", "--grid method"]),
        (ONE_BUDGET, ["method"], ["'method' is not KEY=VALUE"]),
        (ONE_BUDGET, ["=cfsp"], ["is not KEY=VALUE"]),
        (ONE_BUDGET, ["method="], ["'method' has no values"]),
        (ONE_BUDGET, ["method=cfsp,cfsp"], ["names a value twice"]),
        (ONE_BUDGET, ["method=cfsp", "method=flap"], ["names 'method' twice"]),
        (ONE_BUDGET, ["method=cfsp,flap", "prune.steps.0.method=cfsp"], ["one place twice"]),
        (ONE_BUDGET, ["methd=cfsp"], ["'methd' is no key", "'method'"]),
        (ONE_BUDGET, ["prune.steps.0.methd=cfsp"], ["unknown key 'prune.steps.0.methd'", "'method'"]),
        (ONE_BUDGET, ["prune.step.0.method=cfsp"], ["unknown key 'prune.step'", "'steps'"]),
        (ONE_BUDGET, ["prune.steps.3.method=cfsp"], ["list at 'prune.steps'", "3", "Use 0"]),
        (ONE_BUDGET, ["prune.steps.first.method=cfsp"], ["'first' is no place"]),
        (ONE_BUDGET, ["prune.steps.0.method.name=cfsp"], ["a value at 'prune.steps.0.method'"]),
        (ONE_BUDGET, ["remove=0.2,2"], ["wrong value at 'prune.steps.0.budget.ffn.remove'", "remove=2"]),
        (ONE_BUDGET, ["method=cfsp,cfps"], ["'cfps'", "'cfsp'"]),
        (ONE_BUDGET, ["method=[cfsp"], ["is not valid YAML"]),
        (ONE_BUDGET, ["benchmark.rounds=25,50"], ["varies 'benchmark'", "cannot be compared"]),
        (ONE_BUDGET, ["model=a,b"], ["varies 'model'"]),
        (ONE_BUDGET, ["prune.steps.0.shots=" + ",".join(map(str, range(1, 10_002)))], ["more than 10,000"]),
        (ONE_BUDGET, ["export=null,{lowering: portable}"], ["cannot be timed together", "export: null"]),
        (TWO_BUDGETS, ["remove=0.2"], ["ffn, kv_group", "budget.ffn.remove"]),
        ({"prune": {"steps": [{"budgt": 1}]}}, ["method=cfsp"], ["r.yaml has an unknown key"]),
    ],
)
def test_what_is_refused_says_what_to_do(values, grid, words):
    with pytest.raises(TrimlineError) as caught:
        points(values, *grid)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def brute_front(places):
    return {
        a.name for a in places
        if not any(b.speed >= a.speed and b.perplexity <= a.perplexity and (b.speed > a.speed or b.perplexity < a.perplexity) for b in places)
    }  # fmt: skip


def test_the_front_is_what_nobody_beats():
    import random

    draw = random.Random(3)
    for _ in range(50):
        places = [
            FrontPoint(str(n), draw.choice([1.0, 1.2, 1.4, 1.6]), draw.choice([10.0, 12.0, 15.0])) for n in range(draw.randint(1, 12))
        ]
        front = pareto(places)
        assert {place.name for place in front} == brute_front(places)
        assert [place.speed for place in front] == sorted(place.speed for place in front)


def test_the_knee_is_farthest_from_the_chord():
    ends = FrontPoint("a", 1.0, 10.0), FrontPoint("e", 2.0, 40.0)
    inside = FrontPoint("b", 1.3, 11.0), FrontPoint("c", 1.6, 13.0), FrontPoint("d", 1.8, 25.0)
    found, _ = knee([ends[0], *inside, ends[1]])
    chord = (ends[1].speed - ends[0].speed, math.log(ends[1].perplexity / ends[0].perplexity))
    distances = {p.name: (p.speed - 1.0) / chord[0] - math.log(p.perplexity / 10.0) / chord[1] for p in inside}
    assert found is not None
    assert found.name == max(distances, key=lambda name: distances[name]) == "c"


@pytest.mark.parametrize(
    ("front", "why"),
    [
        ([FrontPoint("a", 1.0, 10.0), FrontPoint("b", 2.0, 20.0)], "no point between its ends"),
        ([FrontPoint("a", 1.0, 10.0), FrontPoint("b", 1.5, 19.0), FrontPoint("c", 2.0, 20.0)], "below the line"),
        ([FrontPoint("a", 1.0, 10.0)], "no point between its ends"),
    ],
)
def test_a_front_without_a_knee_says_why(front, why):
    found, said = knee(front)
    assert found is None
    assert why in said


def test_a_recipe_travels_as_what_it_says(tmp_path):
    training = {"kind": "full", "loss": "text", "steps": 2}
    said = checked_recipe({"prune": {"steps": [{"budget": {"ffn": {"remove": 0.5}}}]}, "recover": training})
    task = Task.of(said, RunOptions(), tmp_path, SOURCE, {})
    assert checked_recipe(Task.from_record(json.loads(json.dumps(task.as_record()))).recipe) == said
