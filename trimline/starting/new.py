"""``trimline new``: chooses, writes the recipe, reads it again as a run would, and says what was chosen and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.targets import ModelToServe
from pipeline.architecture.profile import Profile
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.sources.config import NamedModel, named_model
from pipeline.sources.recipe import ModelSlice
from trimline.recipe import Recipe, parse_recipe
from trimline.stages.preflight import check_feasible
from trimline.starting.choosing import Chosen, choose
from trimline.starting.purpose import Purpose, gib
from trimline.starting.shipped import first_comment, for_model, shipped_recipe
from trimline.starting.ways import EXPERTS
from trimline.starting.writing import aim_words, loads_words, quoted, recipe_to_start_from, run_command, slug

WHY = {
    "trimline": "of the methods here it loses least at equal speed (docs/targets.md)",
    "cfsp": "no gradients, so it is quick, and the rest is solved for anew",
    "reap": "it needs no gradients and no training, and is what most pruned mixtures were made by (docs/experts.md)",
    "cfsp_extended": "no gradients, so it is quick, and the rest is solved for anew",
}
# Measured: docs/results.md.
LOST = "the built-in model's perplexity, by trimline on FFN channels alone, grew 1.3 times where 20 % went, 1.6 times at 30 %, 2.6 times at 50 %"
MUCH = 0.5
LOST_OF_EXPERTS = (
    "how much that costs differs from model to model, and a few experts too many ruin some: try several counts (docs/experts.md)"
)


@dataclass(frozen=True)
class NewRecipe:
    """A recipe that was written.

    Attributes:
        path: where.
        recipe: what it says.
        reasons: what was chosen and why, a line each.
    """

    path: Path
    recipe: Recipe
    reasons: tuple[str, ...]

    @property
    def next_command(self) -> str:
        """What runs it."""
        return run_command(self.path)


def new_recipe(model: str, output: Path | None, purpose: Purpose, names: Sequence[str], command: str) -> NewRecipe:
    """Writes a recipe for a model and a purpose.

    Args:
        model: a folder, a .gguf file, a hub id or ``default``; only its config is read.
        output: the file; by default named after the model, in the current folder.
        purpose: what the result is to reach.
        names: who is to load the result.
        command: what was typed, for the first lines of the recipe.

    Raises:
        TrimlineError: it cannot be done, or the file is there already.
    """
    dense = named_model(ModelSlice(source=model))
    path = output or _own_file(model)
    chosen = choose(dense, purpose, names)
    text = recipe_to_start_from(chosen, model, path, command)
    return _written(text, path, dense, tuple(_reasons(chosen)))


def like_shipped(model: str, output: Path | None, name: str) -> NewRecipe:
    """Writes a recipe that ships with Trimline, with another model in it.

    Raises:
        TrimlineError: there is no such recipe, the model cannot be pruned by it, or the file is there already.
    """
    text = for_model(shipped_recipe(name), quoted(model))
    return _written(text, output or _own_file(model), named_model(ModelSlice(source=model)), (f"Copied: {first_comment(text)}",))


def _written(text: str, path: Path, dense: NamedModel, reasons: tuple[str, ...]) -> NewRecipe:
    """Nothing is written that a run would refuse before it measures."""
    recipe = parse_recipe(text, path.name)
    check_feasible(recipe, RunOptions(), ModelToServe(dense.geometry, recipe.rebuild.profile, dense.config, dense.files))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise TrimlineError(f"{path} is there already.", "Name another file with --output, or remove it.") from None
    except FileNotFoundError:
        raise TrimlineError(f"There is no folder {path.parent}.", "Make it, or name another file with --output.") from None
    return NewRecipe(path, recipe, reasons)


def _own_file(model: str) -> Path:
    return Path(f"{slug(Path(model).name.removesuffix('.gguf') or Path(model).resolve().name)}.yaml")


def _reasons(chosen: Chosen) -> Iterator[str]:
    dense, way = chosen.model.geometry, chosen.way
    yield f"Model: {chosen.model.name}, {dense.family.model_type}, {dense.total_parameters() / 1e6:,.1f} M parameters in {len(dense.blocks)} blocks."
    yield f"Aim: {aim_words(chosen)}" + ("." if chosen.purpose.given else ", since none was given (--speedup, --fit or --remove).")
    if chosen.purpose.fit:
        yield f"The dense model takes {gib(chosen.footprint.bytes(dense))}: {chosen.footprint.words}."
    yield f"What goes: {way.words}, by {chosen.method}: {WHY[chosen.method]}."
    yield f"Shape: profile {way.profile}, {_why_profile(chosen)}; it loads in {loads_words(chosen)}."
    if chosen.no_graph:
        yield f"Graph: none (export: null), since {chosen.no_graph}. Both models are evaluated and timed as checkpoints, in torch."
    if chosen.purpose.speedup:
        yield "Speed is that of ONNX Runtime on this machine: the run measures what sizes cost first, and what came out last."
    after = " That is much: train what is left (recover)." if chosen.goes > MUCH else ""
    lost = LOST_OF_EXPERTS if chosen.way is EXPERTS else LOST
    yield f"What to expect: about {chosen.goes:.0%} of the decoder goes; {lost}.{after}"


def _why_profile(chosen: Chosen) -> str:
    if chosen.way.profile is Profile.DECILM:
        return "widths that differ by block, which lose less than equal ones"
    if chosen.way.profile is Profile.FREE:
        return f"since decilm cannot hold {chosen.way.words} of {chosen.model.geometry.family.model_type}"
    return f"all blocks alike, as {', '.join(chosen.clients)} needs them"
