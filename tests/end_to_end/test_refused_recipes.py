"""Recipes that ask for what is not there, or for what cannot be: one sentence, an exit code, nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.scenario import assert_nothing_half_written, assert_refused, changed, recipe, trimline, written

STEP = ("prune", "steps", 0)
WINDOWS = ("prune", "calibration")


@pytest.fixture
def values(inputs) -> dict[str, Any]:
    return recipe("cfsp-least-squares", inputs)


def check_refused(values: dict[str, Any] | str, folder: Path, *words: str, code: int = 2) -> None:
    path = folder / "recipe.yaml"
    if isinstance(values, str):
        path.write_text(values, encoding="utf-8")
    else:
        written(values, folder)
    assert_refused(trimline("run", path, "-o", folder / "out", "--threads", 1), *words, code=code)
    assert_nothing_half_written(folder / "out")


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("modle",), ("'modle'", "'model'")),
        (("model", "sorce"), ("'model.sorce'", "'source'")),
        (("text", "calibration", "colum"), ("'text.calibration.colum'", "'column'")),
        ((*WINDOWS, "window_"), ("'prune.calibration.window_'", "'window'")),
        ((*STEP, "metod"), ("'prune.steps.0.metod'", "'method'")),
        ((*STEP, "budget", "ffn", "remov"), ("'prune.steps.0.budget.ffn.remov'", "'remove'")),
        ((*STEP, "budget", "fnn"), ("'prune.steps.0.budget.fnn'", "'ffn'")),
        (("benchmark", "workloads", 0, "promt"), ("'benchmark.workloads.0.promt'", "'prompt'")),
        (("zzzzz",), ("'zzzzz'", "prune", "rebuild")),
    ],
)
def test_an_unknown_key_names_the_nearest(values, tmp_path, path, named):
    for place in (("model",), ("text", "calibration")):
        if path[: len(place)] == place and len(path) > len(place):
            values = changed(values, *place, to={"source": "default"})
    check_refused(changed(values, *path, to={"remove": 0.5}), tmp_path, "recipe.yaml", "unknown key", *named)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("prune",), None, ("'prune'",)),
        (("prune", "steps"), [], ("'prune.steps'",)),
        (("prune", "steps"), {"method": "cfsp"}, ("'prune.steps'",)),
        (("model",), 3, ("'model'", "3")),
        ((*WINDOWS, "windows"), "many", ("'prune.calibration.windows'", "'many'")),
        ((*WINDOWS, "windows"), True, ("'prune.calibration.windows'", "True")),
        ((*WINDOWS, "windows"), -4, ("'prune.calibration.windows'", "-4")),
        ((*STEP, "budget"), "half", ("'prune.steps.0.budget'", "'half'")),
        ((*STEP, "budget"), {}, ("'prune.steps.0'", "exactly one of 'budget'")),
        ((*STEP, "budget", "ffn"), 0.5, ("'prune.steps.0.budget.ffn'", "0.5")),
        ((*STEP, "budget", "ffn"), {"remove": 1.0}, ("'prune.steps.0.budget.ffn.remove'", "a number below 1 is wanted")),
        ((*STEP, "budget", "ffn"), {"remove": float("nan")}, ("'prune.steps.0.budget.ffn.remove'", "nan")),
        ((*STEP, "budget", "ffn"), {"remove": False}, ("'prune.steps.0.budget.ffn.remove'", "False")),
        ((*STEP, "budget", "ffn"), {"remove": 0.2, "keep": 8}, ("'prune.steps.0.budget.ffn'", "either 'remove' or 'keep'")),
        ((*STEP, "budget", "ffn"), {"keep": 0}, ("'prune.steps.0.budget.ffn.keep'", "0")),
        ((*STEP, "budget", "ffn"), {"keep": [8, -1, 8, 8]}, ("'prune.steps.0.budget.ffn.keep", "-1")),
        ((*STEP, "budget"), {"layer": {"keep": 0}}, ("'prune.steps.0.budget.layer.keep'", "0")),
        ((*STEP, "damping"), float("nan"), ("'prune.steps.0.damping'",)),
        (("rebuild", "profile"), "deci", ("'rebuild.profile'", "'decilm'", "'deci'")),
        (("export", "precision"), "int3", ("'export.precision'", "'int3'")),
        (("export", "perplexity_bar"), 0.5, ("'export.perplexity_bar'", "0.5")),
    ],
)
def test_a_wrong_value_is_named_with_its_place(values, tmp_path, path, value, words):
    check_refused(changed(values, *path, to=value), tmp_path, "recipe.yaml", *words)


@pytest.mark.parametrize(
    ("path", "words"),
    [(("prune",), "lacks 'prune'"), (("prune", "steps"), "lacks 'prune.steps'"), ((*STEP, "budget"), "exactly one of 'budget'")],
)
def test_a_missing_part_is_named(values, tmp_path, path, words):
    place: Any = values
    for part in path[:-1]:
        place = place[part]
    del place[path[-1]]
    check_refused(values, tmp_path, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune: [1\n", ("not valid YAML", "line 1")),
        ("prune:\n\t- cfsp\n", ("not valid YAML",)),
        ("name: &n a\nmodel: *n\n", ("aliases",)),
        ("name: !!python/object/apply:os.system ['true']\n", ("has the tag", "line 1")),
        ("", ("holds no recipe",)),
        ("- prune\n", ("holds no recipe",)),
        ("name: a\nname: b\nprune: {}\n", ("'name'", "twice")),
        ("prune:\n  steps: []\n  steps: []\n", ("'steps'", "twice")),
        ("1: a\nprune: {}\n", ("'1'",)),
        ("[" * 2000, ("nests more than", "line 1")),
        ("? {a: b}\n: c\n", ("key", "no word")),
        ("name: a\nprune: {calibration: {windows: 010}}\n", ("010 in line 2", "Write 10")),
    ],
    ids=("flow", "tab", "alias", "python tag", "empty", "list", "twice", "twice below", "number as key", "deep", "mapping as key", "octal"),
)
def test_a_file_that_is_no_recipe(tmp_path, text, words):
    check_refused(text, tmp_path, "recipe.yaml", *words)


def test_a_recipe_that_is_not_there(tmp_path):
    assert_refused(trimline("run", tmp_path / "none.yaml", "-o", tmp_path / "out"), "none.yaml")
    assert_refused(trimline("run", tmp_path, "-o", tmp_path / "out"), str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_no_text_or_huge(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    assert_refused(trimline("run", path, "-o", tmp_path / "out"), "not UTF-8")
    path.write_text("#" * (5 * 2**20))
    assert_refused(trimline("run", path, "-o", tmp_path / "out"), "larger than 4 MiB")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((*STEP, "method"), "cfps", ("'cfps'", "'cfsp'")),
        ((*STEP, "method"), "magic", ("'magic'", "block_influence")),
        ((*STEP, "budget"), {"kv_group": {"remove": 0.5}}, ("cfsp does not score kv_group", "ffn")),
        ((*STEP, "budget"), {"layer": {"keep": 3}}, ("cfsp does not score layer", "ffn")),
        (("rebuild", "profile"), "uniform", ("'uniform'", "allocation 'uniform'", "'decilm'")),
    ],
)
def test_refused_before_anything_is_measured(values, tmp_path, path, value, words):
    check_refused(changed(values, *path, to=value), tmp_path, *words)
    assert not list((tmp_path / "out").glob("store/prune-*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": {"ffn": {"remove": 0.99}}, "round_to": 64}, ("tile of 64", "Remove at most")),
        ({"budget": {"ffn": {"remove": 0.99}}, "round_to": 64, "allocation": "uniform"}, ("tiles of 64", "nearest is 33.3%", "round_to")),
        ({"budget": {"ffn": {"remove": 0.99}}, "round_to": 64, "allocation": "global"}, ("tile of 64", "Remove at most")),
        ({"budget": {"ffn": {"remove": 0.5}}, "round_to": 128}, ("tile of 128", "round_to")),
        ({"budget": {"ffn": {"remove": 0.9, "of": "parameters"}}}, ("90%", "ffn", "Ask for less than 0.6")),
        ({"budget": {"ffn": {"remove": 0.9, "of": "flops"}}}, ("90%", "flops", "Ask for less than")),
        ({"budget": {"ffn": {"keep": [8, 8, 8]}}}, ("3 blocks", "has 4")),
        ({"budget": {"ffn": {"keep": 97}}}, ("97", "96")),
        ({"method": "cfsp_extended", "budget": {"kv_group": {"remove": 0.1}}}, ("10%", "kv_group", "0.500")),
        ({"method": "cfsp_extended", "budget": {"kv_group": {"keep": 3}}}, ("3", "2")),
        ({"method": "cfsp_extended", "budget": {"kv_group": {"keep": [0, 0, 0, 0]}}}, ("No block keeps its attention",)),
        ({"method": "block_influence", "budget": {"layer": {"keep": 5}}}, ("5 of 4 blocks", "between 1 and 4")),
        ({"method": "block_influence", "budget": {"layer": {"keep": [1, 1, 1, 1]}}}, ("layer", "one number")),
        ({"method": "block_influence", "budget": {"layer": {"remove": 0.9}}}, ("0 of 4 blocks",)),
        ({"method": "block_influence", "budget": {"layer": {"remove": 0.1}}}, ("10%", "layer", "0.250")),
        ({"budget": {"ffn": {"remove": 0.5}}, "rounding": "published", "round_to": 8}, ("published rounding", "128")),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_could(values, tmp_path, change, words):
    step = values["prune"]["steps"][0] | {"compensation": "none"} | change
    check_refused(changed(changed(values, "rebuild", "profile", to="free"), *STEP, to=step), tmp_path, *words)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((*WINDOWS, "windows"), 10_000, ("10000 windows of 32 = 320,000 tokens", "the text has")),
        ((*WINDOWS, "window"), 100_000, ("the text has", "longer text")),
        ((*WINDOWS, "starts"), [0, 10**7], ("10000000", "outside the text")),
        ((*WINDOWS, "token_ids"), [[1, 2, 10**30]], ("token id", "103")),
        ((*WINDOWS, "starts"), [], ("starts", "empty")),
        ((*WINDOWS, "token_ids"), [[1, 2], [3]], ("different lengths",)),
        ((*WINDOWS, "token_ids"), [[1, 2, 127]], ("token id", "103")),
        (("evaluate", "windows"), 10_000, ("10000 windows of 32 = 320,000 tokens", "the text has")),
    ],
)
def test_a_text_shorter_than_what_is_asked_for(values, tmp_path, path, value, words):
    check_refused(changed(values, *path, to=value), tmp_path, *words)


def test_the_recipes_that_ship_are_valid():
    from trimline.recipe import read_recipe

    found = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert len(found) >= 4
    assert all(read_recipe(path).prune.steps for path in found)


def test_yaml_round_trip(values):
    from trimline.recipe import checked_recipe, parse_recipe, recipe_text

    wanted = checked_recipe(values)
    assert parse_recipe(recipe_text(wanted)) == wanted
    assert yaml.safe_load(recipe_text(wanted))["prune"]["steps"][0]["round_to"] == 8
