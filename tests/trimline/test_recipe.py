"""Recipes as text: whatever is written, the answer is a recipe or one sentence."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from trimline.recipe import Recipe, checked_recipe, parse_recipe, read_recipe, recipe_text

SHORT = "prune: {steps: [{budget: {ffn: {remove: 0.5}}}]}\n"
KEYS = st.sampled_from(
    ["name", "model", "text", "prune", "steps", "budget", "ffn", "remove", "keep", "calibration", "windows", "sorce", "<<", "1"]
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | KEYS


def test_defaults():
    recipe = parse_recipe(SHORT)
    step = recipe.prune.steps[0]
    assert (recipe.model.source, recipe.text.calibration[0].source, recipe.rebuild.profile) == ("default", "default", Profile.UNIFORM)
    assert (step.method, step.budget[Space.FFN].remove, step.round_to, step.compensation) == ("cfsp", 0.5, 64, "none")


def test_a_bare_string_is_a_source():
    short = parse_recipe("model: some/model\ntext: {evaluation: a.txt}\n" + SHORT)
    long = parse_recipe("model: {source: some/model}\ntext: {evaluation: {source: a.txt}}\n" + SHORT)
    assert short == long


def test_numbers_as_yaml_1_2_writes_them():
    step = parse_recipe("prune: {steps: [{budget: {ffn: {remove: .5}}, damping: 1e-3, round_to: 0o10, shots: 1e1}]}").prune.steps[0]
    assert (step.damping, step.round_to, step.shots) == (0.001, 8, 10)


def test_text_is_written_without_defaults_and_read_again():
    recipe = parse_recipe("name: Zoë\nrebuild: {profile: decilm}\n" + SHORT)
    text = recipe_text(recipe)
    assert parse_recipe(text) == recipe
    assert yaml.safe_load(text) == {
        "name": "Zoë",
        "prune": {"steps": [{"budget": {"ffn": {"remove": 0.5}}}]},
        "rebuild": {"profile": "decilm"},
    }


def test_a_recipe_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(SHORT).prune.steps[0].round_to = 8  # type: ignore[misc]


def removing(share: object) -> dict[str, Any]:
    """A recipe that takes so much of the FFN."""
    return {"prune": {"steps": [{"budget": {"ffn": {"remove": share}}}]}}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({}, "the recipe lacks 'prune'. Add it"),
        (
            {"prune": {"steps": [{"budget": {"ffn": {"remove": 0.5}}, "roundto": 8}]}},
            "unknown key 'prune.steps.0.roundto'. Did you mean 'round_to'?",
        ),
        (
            {"prune": {"steps": [{"budget": {"kv_groups": {"keep": 1}}}]}},
            "unknown key 'prune.steps.0.budget.kv_groups'. Did you mean 'kv_group'?",
        ),
        ({"prune": {"steps": [{"budget": {"ffn": {"keep": [1, "x"]}}}]}}, "'prune.steps.0.budget.ffn.keep.1'"),
        ({"prune": {"steps": [{"budget": {"ffn": {"keep": "x"}}}]}}, "'prune.steps.0.budget.ffn.keep'"),
        ({"prune": {"steps": [7]}}, "'prune.steps.0': keys and values are wanted (given 7)"),
        ({"prune": {"steps": "abc"}}, "'prune.steps': a list is wanted (given 'abc')"),
        (
            removing(1.5),
            "'prune.steps.0.budget.ffn.remove': a number below 1 is wanted (given 1.5). A fraction is meant: write 1.5 % as 0.015.",
        ),
        (removing(30), "(given 30). A fraction is meant: write 30 % as 0.3."),
        (removing("30%"), "a number is wanted (given '30%'). Write 30 % as 0.3."),
        (removing("12.5 %"), "Write 12.5 % as 0.125."),
        (removing("a third"), "a number is wanted (given 'a third'). Mend that value."),
        (removing(-0.1), "a number of at least 0 is wanted (given -0.1). Mend that value."),
        (removing(1e9), "a number below 1 is wanted (given 1000000000.0). Mend that value."),
        (
            removing(0.3) | {"rebuild": {"profile": "delilm"}},
            "one of 'uniform', 'decilm' or 'free' is wanted (given 'delilm'). Did you mean 'decilm'?",
        ),
        (removing(0.3) | {"package": {"targets": ["browser"]}}, "'hub' is wanted (given 'browser'). Mend that value."),
        (removing(0.3) | {"evaluate": {"windows": "ten"}}, "'evaluate.windows': a whole number is wanted (given 'ten')"),
        (removing(0.3) | {"evaluate": {"windows": 0}}, "'evaluate.windows': a number of at least 1 is wanted (given 0)"),
        ({"name": "x" * 300, "prune": {"steps": []}}, "'name'"),
        ({1: 2}, "'1'"),
    ],
)
def test_sentences(value, sentence):
    with pytest.raises(TrimlineError) as caught:
        checked_recipe(value)
    assert sentence in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "Input should" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_truth_is_no_number_wherever_it_stands():
    value = {"prune": {"steps": [{"budget": {"ffn": {"keep": [8, True, 8, 8]}}}]}}
    with pytest.raises(TrimlineError, match=r"'prune\.steps\.0\.budget\.ffn\.keep\.1': a number is wanted \(given True\)"):
        checked_recipe(value)
    assert checked_recipe({"text": {"allow_overlap": True}, **yaml.safe_load(SHORT)}).text.allow_overlap


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"prune": {"steps": [{"budget": {"ffn": {"remove": 0.1}}}] * 60_000}}, "prune.steps"),
        ({"benchmark": {"workloads": ["512/1"] * 60_000}}, "benchmark.workloads"),
        ({"prune": {"steps": [{"pooled": {"spaces": ["ffn"] * 60_000}}]}}, "prune.steps.pooled.spaces"),
    ],
)
def test_more_entries_than_are_read_are_refused_at_once(value, place):
    started = time.perf_counter()
    with pytest.raises(TrimlineError, match=f"60,000 entries at '{place}', and 1,000 are read"):
        checked_recipe(value)
    assert time.perf_counter() - started < 5


def sentence_about(text: str) -> str:
    """What is wrong with a recipe's text; empty where it is a recipe."""
    try:
        assert isinstance(parse_recipe(text), Recipe)
    except TrimlineError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12))
def test_any_yaml_is_a_recipe_or_one_sentence(value):
    assert "\n" not in sentence_about(yaml.safe_dump(value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="abn: -[]{}&*!?|>'\"\n\t#%@`,1", max_size=40))
def test_any_text_is_a_recipe_or_one_sentence(text):
    assert "\n" not in sentence_about(text)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match=rf"{tmp_path} is a folder, and no recipe. .*`trimline new {tmp_path}`"):
        read_recipe(tmp_path)
