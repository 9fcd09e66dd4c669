"""What can be known of ``make gpu`` without a GPU: the model, and of every step recipes, extras, markers, verbs, pairs of versions."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import ValidationError

from benchmarks.recipe import BenchmarkSlice
from benchmarks.runtimes.names import FORMS
from benchmarks.runtimes.opening import opener
from benchmarks.studies.gpu.steps import GPU_TESTS, GpuStep, recipe_text
from exporters.recipe import BuildSlice, ExportSlice
from pipeline.common.errors import TrimlineError
from pipeline.common.slices import Slice
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.steps import resolve_steps
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.sources.model import glance
from pipeline.sources.recipe import DEFAULT, ModelSlice

ROOT = Path(__file__).parents[3]
PARTS: dict[str, type[Slice]] = {
    "model": ModelSlice,
    "prune": PruneSlice,
    "rebuild": RebuildSlice,
    "evaluate": EvaluateSlice,
    "export": ExportSlice,
    "build": BuildSlice,
    "benchmark": BenchmarkSlice,
}


def model_problem(model: str) -> tuple[str, str]:
    """Whether a recipe could begin with that model: a folder's config is read; the hub is not asked."""
    if model == DEFAULT:
        return f"model {model}, which a step installs", ""
    try:
        return f"model {model}: {glance(model)}", ""
    except TrimlineError as error:
        return f"model {model}", str(error)


def problems_of(step: GpuStep, output: Path) -> Iterator[tuple[str, str]]:
    """(what was checked, what is wrong with it or nothing)."""
    if "install" in step.command:
        yield from _packages(step)
    if "-m" in step.command:
        yield from _module(step)
    if step.recipe is not None:
        yield from _recipe(step)
    if "pytest" in step.command:
        yield _marked_tests()


def _packages(step: GpuStep) -> Iterator[tuple[str, str]]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for argument in step.command[step.command.index("install") + 1 :]:
        if argument.startswith("--") or argument == "constraints.txt":
            continue
        if match := re.fullmatch(r"\.\[([\w,-]+)\]", argument):
            lacking = [name for name in match[1].split(",") if name not in extras]
            yield f"extras {match[1]}", f"pyproject.toml has no {', '.join(lacking)}" if lacking else ""
            continue
        try:
            yield f"requirement {Requirement(argument)}", ""
        except InvalidRequirement as error:
            yield f"requirement {argument}", str(error)


def _module(step: GpuStep) -> Iterator[tuple[str, str]]:
    name = step.command[step.command.index("-m") + 1]
    yield f"module {name}", "" if importlib.util.find_spec(name) else "Python does not find it"


def _recipe(step: GpuStep) -> Iterator[tuple[str, str]]:
    """The parts that other rooms own are validated by their own classes: this room may not import the whole recipe."""
    values = dict(step.recipe or {})
    name = values.pop("name")
    wrong = [f"there is no {part}" for part in values if part not in PARTS]
    for part, value in values.items():
        try:
            slice_ = PARTS[part].model_validate(value)
            if isinstance(slice_, PruneSlice):
                resolve_steps(slice_)
        except (ValidationError, TrimlineError, KeyError) as error:
            wrong.append(" ".join(str(error).split())[:200])
    yield f"recipe {name!r} ({len(recipe_text(step))} bytes)", "; ".join(wrong)
    runtime = values["benchmark"]["runtime"]
    try:
        opener(runtime)
        yield f"runtime {runtime}, of a {FORMS[runtime]} folder", ""
    except TrimlineError as error:
        yield f"runtime {runtime}", str(error)


def _marked_tests() -> tuple[str, str]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", *GPU_TESTS]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    count = re.search(r"^(\d+)/\d+ tests collected", said.stdout, re.MULTILINE)
    if said.returncode or not count:
        return "tests marked gpu", (said.stdout + said.stderr).strip().splitlines()[-1]
    return f"{count[1]} tests are marked gpu and can be collected", ""
