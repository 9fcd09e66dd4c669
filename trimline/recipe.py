"""The recipe: what is wanted. The rooms' slices put together, read from YAML, with errors in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from benchmarks.recipe import BenchmarkSlice
from deploy.recipe import PackageSlice
from exporters.gguf.recipe import K_BLOCK, is_k_type
from exporters.recipe import BuildSlice, ExportSlice
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.common.plain_yaml import DEEPEST, MOST_ENTRIES, read_plain_yaml, write_plain_yaml
from pipeline.common.slices import Slice
from pipeline.curve.recipe import CurveSlice
from pipeline.evaluate.recipe import EvaluateSlice, LmEvalSlice
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.recover.recipe import RecoverSlice
from pipeline.sources.recipe import ModelSlice, TextSlice
from trimline.wrong_recipe import wrong_recipe

LARGEST_RECIPE = 4 * 2**20
LLAMA_CPP = "llama.cpp"  # among targets


class Recipe(Slice):
    """Everything a run depends on, apart from how and where it computes."""

    name: str = Field("run", min_length=1, max_length=200)
    model: ModelSlice = ModelSlice()
    text: TextSlice = TextSlice()
    prune: PruneSlice
    rebuild: RebuildSlice = RebuildSlice()
    recover: RecoverSlice | None = None
    evaluate: EvaluateSlice = EvaluateSlice()
    curve: CurveSlice = CurveSlice()
    lm_eval: LmEvalSlice | None = None
    export: ExportSlice | None = Field(ExportSlice(), description="null: no graph is made, and both models are timed as checkpoints")
    build: BuildSlice | None = None
    benchmark: BenchmarkSlice = BenchmarkSlice()
    package: PackageSlice = PackageSlice()

    @model_validator(mode="after")
    def _rounds_for_llama_cpp(self) -> Recipe:
        """FFN widths fit the blocks of k-types where the recipe packages such a file, unless a step says what it rounds to."""
        if LLAMA_CPP in self.package.targets and is_k_type(self.package.gguf.quantise):
            steps = tuple(step if "round_to" in step.model_fields_set else _rounded(step) for step in self.prune.steps)
            object.__setattr__(self, "prune", self.prune.model_copy(update={"steps": steps}))
        return self

    @property
    def draws_curve(self) -> bool:
        """Whether other counts of experts are judged beside the one that a step asks for."""
        return bool(self.curve.removed) and any(Space.EXPERT in step.budget for step in self.prune.steps)

    @model_validator(mode="after")
    def _times_checkpoints_without_graphs(self) -> Recipe:
        """Where nothing is exported, torch is what runs the models, unless the recipe says."""
        if self.export is None and "runtime" not in self.benchmark.model_fields_set:
            object.__setattr__(self, "benchmark", self.benchmark.model_copy(update={"runtime": "torch"}))
        return self

    def rounding(self) -> str | None:
        """A sentence on what k-types of llama.cpp make of the widths that the steps round to; None without k-types, or where no width changes."""
        kind = self.package.gguf.quantise
        if LLAMA_CPP not in self.package.targets or not is_k_type(kind):
            return None
        if all(step.budget and set(step.budget) == {Space.EXPERT} for step in self.prune.steps):
            return None  # experts are as wide as before
        others = sorted({step.round_to for step in self.prune.steps if step.round_to % K_BLOCK})
        if not others:
            return f"FFN widths become multiples of {K_BLOCK}, which {kind} in llama.cpp needs; round_to would say otherwise"
        return (
            f"FFN widths may be no multiples of {K_BLOCK} (round_to: {others[0]}): llama.cpp stores such rows in larger types than {kind}"
        )


def _rounded(step: PruneStep) -> PruneStep:
    """Set as if it had been written, so that the recipe that is kept says so. The published rounding has a tile of its own."""
    return step if step.rounding == "published" else PruneStep.model_validate(step.model_dump(exclude_unset=True) | {"round_to": K_BLOCK})


def as_recipe(recipe: Path | str | Recipe | Mapping[str, Any]) -> Recipe:
    """A recipe from a file, from plain values, or as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    return checked_recipe(dict(recipe)) if isinstance(recipe, Mapping) else read_recipe(Path(recipe))


def read_recipe(path: Path) -> Recipe:
    """Reads a YAML recipe.

    Raises:
        TrimlineError: no such file, not YAML, an unknown key (the nearest valid one is named), or a wrong value.
    """
    return parse_recipe(recipe_file(path), str(path))


def recipe_file(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        TrimlineError: there is none, it is too large, or no text.
    """
    try:
        with path.open("rb") as file:  # a device has no size, and no end either
            content = file.read(LARGEST_RECIPE + 1)
        if len(content) > LARGEST_RECIPE:
            raise TrimlineError(f"{path} is larger than {LARGEST_RECIPE >> 20} MiB.", "Give a recipe; `trimline new MODEL` writes one.")
        text = content.decode("utf-8")
    except IsADirectoryError:
        raise TrimlineError(
            f"{path} is a folder, and no recipe.", f"Give a recipe; `trimline new {path}` writes one for a model."
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise TrimlineError(f"There is no recipe {path}.", "Give a recipe; `trimline new MODEL` writes one.") from None
    except UnicodeDecodeError:
        raise TrimlineError(f"{path} is not UTF-8 text.", "Give a recipe; `trimline new MODEL` writes one.") from None
    return text


def parse_recipe(text: str, name: str = "the recipe") -> Recipe:
    """Reads YAML text; ``name`` is what errors call it.

    Raises:
        TrimlineError: as ``read_recipe``.
    """
    return checked_recipe(plain_recipe(text, name), name)


def plain_recipe(text: str, name: str = "the recipe") -> dict[Any, Any]:
    """The plain values of YAML text, not yet checked against what a recipe is.

    Raises:
        TrimlineError: it is no YAML, or holds something else than keys and values.
    """
    value = read_plain_yaml(text, name)
    if not isinstance(value, dict):
        raise TrimlineError(f"{name} holds no recipe.", "`trimline new MODEL` writes one to start from.")
    return value


def plain_values(recipe: Path | str | Recipe | Mapping[str, Any]) -> dict[Any, Any]:
    """A recipe's file, object or values as plain values of one's own, unchecked."""
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json", exclude_defaults=True)
    return dict(recipe) if isinstance(recipe, Mapping) else plain_recipe(recipe_file(Path(recipe)), str(recipe))


def parse_values(text: str, name: str) -> list[Any]:
    """Reads plain values between commas as YAML: ``0.2,0.3``, ``cfsp,flap``, ``{keep: 8},{keep: 9}``.

    Raises:
        TrimlineError: it is not YAML; ``name`` is what the error calls it.
    """
    return list(read_plain_yaml(f"[{text}]", name))


def checked_recipe(value: dict[Any, Any], name: str = "the recipe") -> Recipe:
    """Validates a recipe given as plain values.

    Raises:
        TrimlineError: the first thing that is wrong, with its place.
    """
    for place, given in _long_lists(value):
        raise TrimlineError(f"{name} has {given:,} entries at {place!r}, and {MOST_ENTRIES:,} are read.", "Leave some out.")
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        raise wrong_recipe(Recipe, error, value, name) from None
    for place, given in _truths_read_as_numbers(value, recipe.model_dump()):
        raise TrimlineError(f"{name} has a wrong value at {place!r}: a number is wanted (given {given}).", "Mend that value.")
    return recipe


def checked_slice(name: str, value: dict[str, Any]) -> Any:
    """One part of a recipe given as plain values, such as ``build``.

    Raises:
        TrimlineError: as ``checked_recipe``.
    """
    needed = {"prune": {"steps": [{"budget": {"ffn": {"remove": 0.0}}}]}}
    return getattr(checked_recipe(needed | {name: value}, "the command"), name)


def recipe_text(recipe: Recipe) -> str:
    """YAML with every value that differs from its default, in a fixed order."""
    return write_plain_yaml(recipe.model_dump(mode="json", exclude_defaults=True))


def _long_lists(given: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """Places of lists with more entries than are read, before each of them is validated; numbers cost little."""
    if isinstance(given, Mapping) and depth < DEEPEST:
        for key, part in given.items():
            yield from _long_lists(part, f"{place}.{key}".lstrip("."), depth + 1)
    elif isinstance(given, (list, tuple)) and depth < DEEPEST:
        counted = [part for part in given if not isinstance(part, int | float)]
        if len(counted) > MOST_ENTRIES:
            yield place, len(given)
        for part in counted:
            yield from _long_lists(part, place, depth + 1)


def _truths_read_as_numbers(given: Any, read: Any, place: str = "") -> Iterator[tuple[str, bool]]:
    """Places of ``true`` and ``false`` that were read as 1 and 0."""
    if isinstance(given, bool) and not isinstance(read, bool):
        yield place, given
    elif isinstance(given, Mapping) and isinstance(read, Mapping):
        for key, part in given.items():
            yield from _truths_read_as_numbers(part, read.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(given, (list, tuple)) and isinstance(read, (list, tuple)):
        for number, (part, other) in enumerate(zip(given, read, strict=False)):
            yield from _truths_read_as_numbers(part, other, f"{place}.{number}")
