"""What is wrong with a recipe, in a sentence: its place, what is wanted there, what was given, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.common.errors import TrimlineError, shortened, shown

KEY = "[key]"  # how pydantic points at a key instead of its value
WANTED = {
    "model_type": "keys and values are wanted",
    "dict_type": "keys and values are wanted",
    "tuple_type": "a list is wanted",
    "too_short": "at least one entry is wanted",
    "literal_error": "one of {expected} is wanted",
    "enum": "one of {expected} is wanted",
    "float_type": "a number is wanted",
    "float_parsing": "a number is wanted",
    "int_type": "a whole number is wanted",
    "int_parsing": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "bool_type": "true or false is wanted",
    "bool_parsing": "true or false is wanted",
    "string_type": "a word or text is wanted",
    "finite_number": "a finite number is wanted",
    "less_than": "a number below {lt:g} is wanted",
    "less_than_equal": "a number of at most {le:g} is wanted",
    "greater_than": "a number above {gt:g} is wanted",
    "greater_than_equal": "a number of at least {ge:g} is wanted",
}
PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")


def wrong_recipe(model: type[BaseModel], error: ValidationError, value: dict[Any, Any], name: str) -> TrimlineError:
    """The first thing that is wrong with plain values.

    Args:
        model: what they were to be.
        error: what pydantic says of it.
        value: the plain values.
        name: what the sentence calls them.
    """
    first = _deepest(error.errors(), value)
    kind, given = first["type"], first["input"]
    if kind == "extra_forbidden" or first["loc"][-1] == KEY:
        loc = first["loc"] if kind == "extra_forbidden" else first["loc"][:-1]
        valid = sorted(_keys_at(model, loc[:-1])) if kind == "extra_forbidden" else re.findall(r"'(.+?)'", first["msg"])
        near = get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Valid here: {', '.join(valid)}."
        return TrimlineError(f"{name} has an unknown key {_dotted(_real_parts(loc, value))!r}.", hint)
    if kind == "missing":
        return TrimlineError(f"{name} lacks {_dotted(first['loc'])!r}.", "Add it; docs/recipe.md says how.")
    place = _dotted(_real_parts(first["loc"], value))
    return TrimlineError(f"{name} has a wrong value at {place!r}: {_wanted(first)} (given {shown(given)}).", _remedy(first))


def _wanted(first: Mapping[str, Any]) -> str:
    """What belongs there: in our words where we have some, else in those of the check that failed."""
    words = WANTED.get(first["type"])
    return str(first["msg"]).removeprefix("Value error, ") if words is None else words.format(**first.get("ctx", {}))


def _remedy(first: Mapping[str, Any]) -> str:
    """What to write instead, where a percentage or a misspelt word was given."""
    kind, given, bounds = first["type"], first["input"], first.get("ctx", {})
    if isinstance(given, str) and (found := PERCENT.fullmatch(given)):
        return f"Write {found[1]} % as {float(found[1]) / 100:g}."
    if kind == "less_than" and bounds["lt"] == 1 and isinstance(given, int | float) and 1 < given < 100:
        return f"A fraction is meant: write {given:g} % as {given / 100:g}."
    if isinstance(given, str) and "expected" in bounds:
        near = get_close_matches(given, re.findall(r"'(.+?)'", bounds["expected"]), n=1, cutoff=0.5)
        if near:
            return f"Did you mean {near[0]!r}?"
    return "Mend that value."


def _deepest(errors: list[Any], value: dict[Any, Any]) -> Any:
    """The first error, or of the alternatives that were tried for the same value the one that got furthest."""
    start = _real_parts(errors[0]["loc"], value)
    alternatives = [error for error in errors if _real_parts(error["loc"], value)[: len(start)] == start]
    return max(alternatives, key=lambda error: len(_real_parts(error["loc"], value)))


def _real_parts(loc: Iterable[int | str], value: Any) -> list[int | str]:
    """A pydantic place without the names of the types that were tried."""
    parts: list[int | str] = []
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        parts.append(part)
    return parts


def _dotted(parts: Iterable[int | str]) -> str:
    return shortened(".".join(map(str, parts)), 200)


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
