"""A recipe's step becomes an object once; behind that no method is looked up, and nobody asks which kind it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.architecture.spaces import Space
from pipeline.artefacts.reach import ROOMS, ROOT
from pipeline.common.errors import TrimlineError
from pipeline.prune.consumer import Consumer
from pipeline.prune.methods.flap import FLAP, FLAPOptions
from pipeline.prune.own import MeasuringStep, OwnStep
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.step import ResolvedStep
from pipeline.prune.steps import resolve_step, resolve_steps
from pipeline.prune.units import UnitStep
from pipeline.prune.weights import WeightStep

FFN = {"budget": {"ffn": {"remove": 0.5}}}
POOLED = {"pooled": {"remove": 0.3}}
WEIGHT = {"budget": {"weight": {"remove": 0.5}}}
TARGET = {"target": {"parameters": 0.8}}


def step(method: str, **stated: Any) -> ResolvedStep:
    return resolve_step(PruneStep.model_validate({"method": method} | stated))


@pytest.mark.parametrize(
    ("method", "stated", "kind"),
    [
        ("cfsp", FFN, UnitStep),
        ("gblm", FFN, UnitStep),
        ("gblm", WEIGHT, WeightStep),
        ("llm_surgeon", FFN, UnitStep),
        ("llm_surgeon", WEIGHT, OwnStep),
        ("laco", {"budget": {"layer": {"remove": 0.5}}}, OwnStep),
        ("trimline", POOLED, MeasuringStep),
    ],
)
def test_the_kind_of_a_step_is_its_methods_and_its_spaces(method: str, stated: dict[str, Any], kind: type[ResolvedStep]) -> None:
    assert type(step(method, **stated)) is kind


@pytest.mark.parametrize(
    ("method", "spaces"),
    [("cfsp", (Space.FFN,)), ("flap", (Space.FFN, Space.KV_GROUP)), ("laco", (Space.LAYER,)), ("block_influence", (Space.LAYER,))],
)
def test_a_target_that_names_no_spaces_gets_the_methods(method: str, spaces: tuple[Space, ...]) -> None:
    assert step(method, **TARGET).spaces == spaces


def test_what_the_recipe_leaves_out_is_the_methods() -> None:
    given = step("wanda_sp", **FFN)
    assert isinstance(given, UnitStep)
    assert (given.rule, given.sequential, given.pools) == ("uniform", True, False)
    stated = step("wanda_sp", allocation="global", sequential=False, **FFN)
    assert isinstance(stated, UnitStep)
    assert (stated.rule, stated.sequential) == ("global", False)
    flap = step("flap", options={"structure": "UL-UM"}, **POOLED)
    assert isinstance(flap, UnitStep)
    assert isinstance(flap.pooling, FLAP)
    assert flap.options == FLAPOptions(structure="UL-UM")
    assert flap.is_even
    assert not step("flap", **POOLED).is_even


def test_a_target_stands_for_a_budget_of_the_same_kind() -> None:
    pooled = step("flap", target={"parameters": 0.8, "allow_empty": True}).as_budget().recipe
    assert pooled.target is None
    assert pooled.pooled is not None
    assert pooled.pooled.allow_empty
    assert step("cfsp_extended", **TARGET).as_budget().recipe.budget.keys() == {Space.FFN, Space.KV_GROUP}
    assert step("laco", **TARGET).as_budget().recipe.budget.keys() == {Space.LAYER}
    assert step("cfsp", **FFN).as_budget() == step("cfsp", **FFN)


def test_every_step_has_the_consumer_and_keeps_the_rest_when_it_states_something_else() -> None:
    consumer = Consumer(weight_bytes=2.0)
    recipe = PruneSlice.model_validate({"steps": [{"method": "flap"} | TARGET, {"method": "cfsp"} | FFN]})
    assert [resolved.consumer for resolved in resolve_steps(recipe, consumer)] == [consumer] * 2
    first = resolve_steps(recipe, consumer)[0]
    later = first.stating(shots=3)
    assert (later.recipe.shots, later.method, later.consumer) == (3, first.method, consumer)


def test_what_a_step_measures_beforehand() -> None:
    assert step("cfsp", **FFN).measures_importance
    assert not step("magnitude", **FFN).measures_importance
    assert step("gblm", **WEIGHT).statistics is None
    with pytest.raises(TrimlineError, match="There is no method 'cfps'. Did you mean 'cfsp'"):
        step("cfps", **FFN)


def test_methods_are_looked_up_and_told_apart_in_one_place() -> None:
    asking = re.compile(r"\bmethod_named\(|\bMETHODS\b|isinstance\([^()]*Method\b")
    found = {
        str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py") if asking.search(path.read_text("utf-8"))
    }
    assert found == {"pipeline/prune/steps.py", "pipeline/prune/methods/__init__.py"}


def test_methods_know_neither_the_registry_nor_what_resolves_steps() -> None:
    importing = re.compile(r"^\s*from pipeline\.prune\.(methods import|steps\b)", re.MULTILINE)
    folder: Path = ROOT / "pipeline" / "prune" / "methods"
    assert [path.name for path in folder.glob("*.py") if importing.search(path.read_text("utf-8"))] == []
