"""What is wrong with a body, in our words and by the name of the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.serve.protocol.fields import UNSERVED

WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is no key that this server knows",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "too_long": "takes at most {max_length}, and there are {actual_length}",
    "too_short": "takes at least {min_length}",
    "string_too_short": "must not be empty",
    "string_too_long": "has more than {max_length} characters",
    "literal_error": "must be {expected}",
}
TAG = "<"  # branches of a union are called <so>, and are no part of a key's name


def explained(error: Mapping[str, Any]) -> tuple[str | None, str]:
    """The key that is wrong, as a path such as ``messages.0.content``, and a sentence; what was sent is not repeated.

    Args:
        error: the first of pydantic's.
    """
    context: Mapping[str, Any] = error.get("ctx") or {}
    place = [str(part) for part in error["loc"] if part != "body" and not str(part).startswith(TAG)]
    if error["type"] == UNSERVED:
        path = _joined([*place, str(context["key"])])
        return path, f"{path}: {context['said']}" if place else str(context["said"])
    said = WORDS[error["type"]].format(**context) if error["type"] in WORDS else str(error["msg"]).removeprefix("Value error, ")
    param = _joined(place)
    return param, f"{param or 'The body'}: {said[:500]}."


def _joined(place: list[str]) -> str | None:
    return ".".join(place)[:200] or None
