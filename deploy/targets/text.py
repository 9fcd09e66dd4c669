"""Text files of targets: rendered from the files in ``templates/``, the same for the same values."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The text of a template; a value that it names and that is not given is an error. ``| quoted`` escapes a string."""
    return _environment().get_template(f"{template}.jinja").render(**values)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 with plain newlines on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_rendered(path: Path, template: str, **values: Any) -> None:
    """Renders ``template`` into a file."""
    write_text(path, render(template, **values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # configs, not HTML: strings go through the filter
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON's escapes are a subset of those of YAML and of protobuf text.
    environment.filters["quoted"] = lambda value: json.dumps(str(value), ensure_ascii=False)
    return environment
