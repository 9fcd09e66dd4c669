"""Recipes that ship with Trimline: the same files as ``recipes/`` of the repository."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources

from pipeline.common.errors import TrimlineError, shown
from pipeline.sources.recipe import DEFAULT

OF_THE_BUILT_IN = ("  licence:", "  base_model:")


def shipped_recipes() -> dict[str, str]:
    """Name to text, in alphabetical order."""
    folder = resources.files("trimline") / "recipes"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def first_comment(text: str) -> str:
    """What a recipe says of itself on its first lines."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def shipped_recipe(name: str) -> str:
    """The text of one.

    Raises:
        TrimlineError: there is none of that name; the nearest is named.
    """
    found = shipped_recipes()
    if name not in found:
        near = get_close_matches(name, found, n=1, cutoff=0.5)
        raise TrimlineError(
            f"No recipe is called {shown(name)}.", f"Did you mean {near[0]!r}?" if near else "`trimline new --list` shows them all."
        )
    return found[name]


def for_model(text: str, model: str) -> str:
    """A recipe's text with another model: in its own line of it, or in one before the steps; rights to the built-in one go."""
    lines = [line for line in text.splitlines() if model == DEFAULT or not line.startswith(OF_THE_BUILT_IN)]
    lines = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if line != "package:" or after.startswith(" ")]
    kept = [line for line in lines if not line.startswith("model:")]
    at = next(number for number, line in enumerate(kept) if line.startswith(("text:", "prune:")))
    return "\n".join([*kept[:at], f"model: {model}", *kept[at:]]) + "\n"
