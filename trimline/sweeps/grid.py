"""The grid of a sweep: keys of the recipe with several values each, and the recipes that their product makes."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pipeline.artefacts.artefact import digest
from pipeline.common.errors import TrimlineError
from pipeline.prune.steps import demand_methods
from trimline.recipe import Recipe, checked_recipe, parse_values

STEP = ("prune", "steps", 0)
VARIED = ("prune", "rebuild", "recover", "export", "build")  # what points may differ in: the rest makes them comparable
AMOUNTS = {"budget", "pooled", "target"}  # of which a step states one
LONGEST_NAME = 80
MOST_POINTS = 10_000

Place = tuple[str | int, ...]
Values = dict[str, Any]


@dataclass(frozen=True)
class GridPoint:
    """One recipe of a sweep.

    Attributes:
        name: unique, and fit for a folder's name.
        settings: what the grid chose, by the keys that were typed.
        recipe: the whole recipe.
    """

    name: str
    settings: dict[str, Any]
    recipe: Recipe


def grid_points(values: Values, axes: Mapping[str, Sequence[Any]], name: str = "the recipe") -> tuple[Recipe, tuple[GridPoint, ...]]:
    """A recipe, and a point for every combination of the grid's values, the last key's changing fastest.

    Args:
        values: the recipe as plain values; a recipe of its own, whose dense model all points are compared with.
        axes: keys and their values; a key is a path such as ``prune.steps.0.method`` or one of ``SHORT``.
        name: what errors call the recipe.

    Raises:
        TrimlineError: no grid, a key that the recipe cannot have, a wrong value, two points that are the same, or some that export and some that do not.
    """
    base = checked_recipe(values, name)
    _demand_grid(axes)
    chosen = [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*axes.values())]
    points = tuple(_point(values, settings, name) for settings in chosen)
    _demand_different(points)
    if any((point.recipe.export is None) != (base.export is None) for point in points):
        raise TrimlineError(
            "Points with a graph and points without one cannot be timed together.", "Give every point an export, or none (export: null)."
        )
    demand_methods({step.method for point in points for step in point.recipe.prune.steps})
    return base, points


def parse_grid(grid: Sequence[str]) -> dict[str, list[Any]]:
    """``["method=cfsp,flap", "remove=0.2,0.3"]`` to keys and values.

    Raises:
        TrimlineError: something else, or a key that is named twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in grid:
        key, equals, listed = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise TrimlineError(f"The grid {text!r} is not KEY=VALUE,VALUE.", "Write, say, method=cfsp,flap.")
        if key in axes:
            raise TrimlineError(f"The grid names {key!r} twice.", "Give all its values in one --grid.")
        axes[key] = parse_values(listed, f"The grid's {key!r}")
    return axes


def axes_of(points: Sequence[GridPoint]) -> dict[str, list[Any]]:
    """Keys and their values, as the points have them."""
    axes: dict[str, list[Any]] = {}
    for point in points:
        for key, value in point.settings.items():
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    return axes


def _demand_grid(axes: Mapping[str, Sequence[Any]]) -> None:
    if not axes:
        raise TrimlineError("The sweep has no grid.", "Add, say, --grid method=cfsp,flap --grid remove=0.2,0.3.")
    for key, values in axes.items():
        if not values:
            raise TrimlineError(f"The grid's {key!r} has no values.", f"Write {key}=VALUE,VALUE.")
        if len({digest(value) for value in values}) < len(values):
            raise TrimlineError(f"The grid's {key!r} names a value twice.", "Leave one of the two.")
    if math.prod(map(len, axes.values())) > MOST_POINTS:
        raise TrimlineError(f"The grid has more than {MOST_POINTS:,} points.", "Name fewer values.")


def _point(values: Values, settings: Values, name: str) -> GridPoint:
    varied = copy.deepcopy(values)
    places = {key: _place(key, values) for key in settings}
    if len(set(places.values())) < len(places):
        raise TrimlineError(f"The grid names one place twice: {', '.join(places)}.", "Leave one of these keys out.")
    for key, value in settings.items():
        _make_room(varied, places[key])
        _set(varied, places[key], value, name)
    title = " ".join(f"{key}={_shown(value)}" for key, value in settings.items())
    return GridPoint(_folder_name(settings), settings, checked_recipe(varied, f"{name} with {title}"))


def _place(key: str, values: Values) -> Place:
    """Where a grid's key lies in the recipe."""
    if key in SHORT:
        return SHORT[key](values)
    parts: Place = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    if parts[0] in Recipe.model_fields and parts[0] not in VARIED:
        raise TrimlineError(
            f"The grid varies {parts[0]!r}, and points that differ in it cannot be compared.",
            f"Vary what lies in {', '.join(VARIED)}; sweep once for every {parts[0]}.",
        )
    if len(parts) == 1 and parts[0] not in Recipe.model_fields:
        # An unknown word is said to be one by the recipe; here it is more often a short name that was meant.
        near = get_close_matches(key, [*SHORT, *VARIED], n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Short names are {', '.join(SHORT)}; others are whole paths."
        raise TrimlineError(f"The grid's {key!r} is no key of the recipe.", hint)
    return parts


def _make_room(values: Any, place: Place) -> None:
    """A step states how much goes in one way: a grid that states it in another takes the place of what the recipe says."""
    if len(place) < 4 or place[:2] != STEP[:2] or place[3] not in AMOUNTS or not isinstance(place[2], int):
        return
    steps = values.get("prune", {}).get("steps", [])
    if place[2] < len(steps) and isinstance(steps[place[2]], dict):
        for other in AMOUNTS - {place[3]}:
            steps[place[2]].pop(other, None)


def _set(values: Any, place: Place, value: Any, name: str) -> None:
    """Puts one value where the place says, making the parts on the way that a recipe leaves out."""
    *way, last = place
    for number, part in enumerate(way):
        values = _part(values, part, place[: number + 1], name)
    if isinstance(values, list):
        _part(values, last, place, name)
    elif not isinstance(values, dict):
        raise TrimlineError(f"{name} has a value at {_dotted(place[:-1])!r}, and no keys below it.", "Vary that value itself.")
    values[last] = value


def _part(values: Any, part: str | int, place: Place, name: str) -> Any:
    if isinstance(values, list):
        if not isinstance(part, int) or part >= len(values):
            valid = f"0 to {len(values) - 1}" if len(values) > 1 else "0"
            raise TrimlineError(f"{name} has a list at {_dotted(place[:-1])!r}, and {part!r} is no place in it.", f"Use {valid}.")
        return values[part]
    if not isinstance(values, dict):
        raise TrimlineError(f"{name} has a value at {_dotted(place[:-1])!r}, and no keys below it.", "Vary that value itself.")
    if values.get(part) is None:
        values[part] = {}
    return values[part]


def _removed(values: Values) -> Place:
    """The fraction that the first step removes, where it has one budget."""
    step = checked_recipe(values).prune.steps[0]
    if step.pooled:
        return (*STEP, "pooled", "remove")
    if len(step.budget) != 1:
        spaces = ", ".join(space.value for space in step.budget) or "no space"
        raise TrimlineError(
            f"'remove' means the step's one budget, and this step has budgets of {spaces}.",
            f"Name the place: {_dotted(STEP)}.budget.ffn.remove, say.",
        )
    return (*STEP, "budget", next(iter(step.budget)).value, "remove")


SHORT: Mapping[str, Callable[[Values], Place]] = {
    "method": lambda _: (*STEP, "method"),
    "remove": _removed,
    "speedup": lambda _: (*STEP, "target", "speedup"),
}


def _demand_different(points: Sequence[GridPoint]) -> None:
    seen: dict[str, GridPoint] = {}
    for point in points:
        key = digest(point.recipe.model_dump(mode="json"))
        if key in seen:
            raise TrimlineError(f"The points {seen[key].name} and {point.name} are the same recipe.", "Leave one of them out of the grid.")
        seen[key] = point


def _folder_name(settings: Values) -> str:
    """Readable where it can be, and never that of another point."""
    text = ",".join(f"{key.removeprefix(_dotted(STEP) + '.')}={_shown(value)}" for key, value in settings.items())
    name = re.sub(r"[^\w.,=-]+", "_", text, flags=re.ASCII)
    return name if name == text and len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{digest(settings)[:8]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))
