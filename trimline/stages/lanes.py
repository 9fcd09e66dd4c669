"""Where the models of a run come from, in the form that a recipe has them evaluated and timed in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.runtimes.names import FORMS
from pipeline.artefacts.artefact import Artefact
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.sources.model import checkpoint_folder
from trimline.recipe import Recipe
from trimline.stages.names import DENSE, PRUNED, RECOVERED, SMALLER, SOURCE, Lane, Name, engine_of, evaluation_of, export_of

Done = dict[Name, Artefact]


def origin(recipe: Recipe, lane: Lane) -> Name:
    """What a model's checkpoint comes from."""
    if lane.checkpoint == DENSE:
        return SOURCE
    return RECOVERED if recipe.recover and lane.checkpoint == PRUNED else SMALLER


def timed(recipe: Recipe, lane: Lane) -> Name:
    """What the benchmark's runtime opens of a model."""
    form = FORMS[recipe.benchmark.runtime]
    return {"onnx": export_of(lane), "openvino": export_of(lane), "engine": engine_of(lane), "checkpoint": origin(recipe, lane)}[form]


def evaluated(recipe: Recipe, lane: Lane) -> Name:
    """What read the evaluation text in the form that is timed: accuracy and speed are of the same weights."""
    form, build = FORMS[recipe.benchmark.runtime], recipe.build
    if form == "engine" and build is not None and build.precision == "int8":
        return evaluation_of(lane.engine)
    exact = recipe.export is None or recipe.export.precision == "fp32"
    return evaluation_of(lane if form == "checkpoint" or exact else lane.graph)


def opened(done: Mapping[Name, Artefact], name: Name) -> Path:
    """The folder that a reader of an artefact opens: of the source, the checkpoint that it names."""
    folder = done[name].folder
    return checkpoint_folder(folder) if name == SOURCE else folder


def family_of(done: Mapping[Name, Artefact]) -> str:
    """What transformers calls the dense model's family."""
    return Checkpoint(opened(done, SOURCE)).geometry.family.model_type
