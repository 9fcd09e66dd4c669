"""The recipe: what is wanted. The rooms' slices put together, read from YAML, with errors in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from benchmarks.recipe import BenchmarkSlice
from deploy.recipe import PackageSlice
from exporters.recipe import ExportSlice
from pipeline.errors import TrimlineError
from pipeline.recipe import EvaluateSlice, ModelSlice, PruneSlice, RebuildSlice, Slice, TextSlice

LARGEST_RECIPE = 4 * 2**20


class Recipe(Slice):
    """Everything a run depends on, apart from how and where it computes."""

    name: str = Field("run", min_length=1, max_length=200)
    model: ModelSlice = ModelSlice()
    text: TextSlice = TextSlice()
    prune: PruneSlice
    rebuild: RebuildSlice = RebuildSlice()
    evaluate: EvaluateSlice = EvaluateSlice()
    export: ExportSlice = ExportSlice()
    benchmark: BenchmarkSlice = BenchmarkSlice()
    package: PackageSlice = PackageSlice()


def read_recipe(path: Path) -> Recipe:
    """Reads a YAML recipe.

    Raises:
        TrimlineError: no such file, not YAML, an unknown key (the nearest valid one is named), or a wrong value.
    """
    try:
        if path.stat().st_size > LARGEST_RECIPE:
            raise TrimlineError(f"{path} is larger than {LARGEST_RECIPE >> 20} MiB.", "Give a recipe, such as recipes/quickstart.yaml.")
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise TrimlineError(f"There is no recipe {path}.", "Give a YAML file, such as recipes/quickstart.yaml.") from None
    except UnicodeDecodeError:
        raise TrimlineError(f"{path} is not UTF-8 text.", "Give a YAML file, such as recipes/quickstart.yaml.") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, name: str = "the recipe") -> Recipe:
    """Reads YAML text; ``name`` is what errors call it.

    Raises:
        TrimlineError: as ``read_recipe``.
    """
    try:
        # Aliases can grow a small file without bound, and no recipe needs them.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise TrimlineError(f"{name} uses YAML aliases, which are not read.", "Write the value out where it is used.")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TrimlineError(f"{name} is not valid YAML: {_one_line(error)}.", "Mend that place.") from None
    if not isinstance(value, dict):
        raise TrimlineError(f"{name} holds no recipe.", "Start from recipes/quickstart.yaml.")
    return checked_recipe(value, name)


def checked_recipe(value: dict[Any, Any], name: str = "the recipe") -> Recipe:
    """Validates a recipe given as plain values.

    Raises:
        TrimlineError: the first thing that is wrong, with its place.
    """
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise _sentence(error, name) from None


def recipe_text(recipe: Recipe) -> str:
    """YAML with every value that differs from its default, in a fixed order."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


def _sentence(error: ValidationError, name: str) -> TrimlineError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = sorted(_keys_at(Recipe, first["loc"][:-1]))
        near = get_close_matches(str(first["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Valid here: {', '.join(valid)}."
        return TrimlineError(f"{name} has an unknown key {place!r}.", hint)
    if first["type"] == "missing":
        return TrimlineError(f"{name} lacks {place!r}.", "Add it; recipes/quickstart.yaml shows how.")
    given = repr(first["input"])
    shown = given if len(given) <= 60 else given[:57] + "…"
    return TrimlineError(f"{name} has a wrong value at {place!r}: {first['msg']} (given {shown}).", "Mend that value.")


def _keys_at(model: type[BaseModel], place: Iterable[int | str]) -> set[str]:
    """Valid keys of the part of a recipe that a validation error points into."""
    current: Any = model
    for part in place:
        fields = getattr(current, "model_fields", {})
        if part in fields:
            current = _part_of(fields[part].annotation)
    return set(getattr(current, "model_fields", {}))


def _part_of(annotation: Any) -> Any:
    """The slice inside an annotation such as ``tuple[PruneStep, ...]`` or ``dict[Space, Budget]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_part_of(argument) for argument in get_args(annotation)]
    return next((part for part in found if part is not None), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
