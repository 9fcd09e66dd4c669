"""What holds for anything at all that stands in the place of a recipe, a config, a plan or a file of weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan
from pipeline.sources.model import identify
from pipeline.sources.recipe import ModelSlice
from trimline.recipe import Recipe, checked_recipe, parse_recipe, recipe_text

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
CONFIG = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 4}
CONFIG |= {"num_hidden_layers": 1, "vocab_size": 8}
PLAN = {"format": 1, "family": "llama", "blocks": "0", "ffn": ["0"], "kv_groups": ["0"], "residual": None, "sparse": {}, "biases": []}
PLAN |= {"steps": [{"title": "t", "recipe": {}, "facts": {}, "kept": {"ffn.0": "0"}}]}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
quick = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def refused_or(kind: type, work: Any) -> None:
    try:
        found = work()
    except TrimlineError as error:
        found = error
    assert isinstance(found, kind) or (found.problem and found.remedy)


@quick
@given(st.text())
def test_any_text_as_a_recipe(text):
    refused_or(Recipe, lambda: parse_recipe(text))


@quick
@given(st.sampled_from(sorted(Recipe.model_fields)), ANYTHING)
def test_anything_in_any_part_of_a_recipe(part, value):
    given_ = {"prune": {"steps": [{"budget": {"ffn": {"remove": 0.5}}}]}} | {part: value}
    refused_or(Recipe, lambda: checked_recipe(given_))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_written_again_is_the_same_recipe(path):
    wanted = parse_recipe(path.read_text(encoding="utf-8"))
    assert parse_recipe(recipe_text(wanted)) == wanted
    assert yaml.safe_load(recipe_text(wanted))


@quick
@given(st.sampled_from(sorted({*CONFIG, "head_dim", "block_configs", "biases", "tie_word_embeddings", "base_model_type"})), ANYTHING)
def test_anything_in_a_config(key, value):
    refused_or(Geometry, lambda: Geometry.from_config(CONFIG | {key: value}))


@quick
@given(st.sampled_from(sorted(PLAN)), ANYTHING)
def test_anything_in_a_plan(key, value):
    with tempfile.TemporaryDirectory() as folder:
        from pipeline.tensors.tensorfile import save_tensors

        for name in ("updates", "scores"):
            save_tensors(Path(folder) / f"{name}.safetensors", {})
        (Path(folder) / "plan.json").write_text(json.dumps(PLAN | {key: value}))
        refused_or(Plan, lambda: Plan.read(Path(folder)))


@quick
@given(st.binary(max_size=64), st.sampled_from(["model.safetensors", "config.json", "model.safetensors.index.json"]))
def test_any_bytes_as_a_file_of_a_checkpoint(content, name):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        (Path(folder) / name).write_bytes(content)
        refused_or(Checkpoint, lambda: Checkpoint(Path(folder)))


@quick
@given(st.text(max_size=40))
@example("~0")  # somebody's home, and nobody's
def test_any_name_as_a_model(name):
    refused_or(dict, lambda: identify(ModelSlice(source=name)))
