"""Steps of a recipe, resolved: the one place that looks methods up by name and knows which kinds of method there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.common.errors import TrimlineError
from pipeline.common.slices import Slice
from pipeline.prune.compensation.linear_map import MAPS
from pipeline.prune.consumer import Consumer
from pipeline.prune.methods import method_named
from pipeline.prune.methods.method import CheckingMethod, MeasuringMethod, PoolingMethod, ScoringMethod, StepMethod, WeightMethod
from pipeline.prune.model.masks import Pattern
from pipeline.prune.own import MeasuringStep, OwnStep
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.step import Method, ResolvedStep
from pipeline.prune.units import BY_SCORE, UnitStep
from pipeline.prune.weights import WeightStep

ANYWHERE = Consumer()


def resolve_steps(recipe: PruneSlice, consumer: Consumer = ANYWHERE) -> tuple[ResolvedStep, ...]:
    """The steps as they are run, in order.

    Args:
        recipe: as it is stated.
        consumer: what will run the result; targets are stated for it.

    Raises:
        TrimlineError: what can be known to be wrong before anything is measured: an unknown method, a space that the
            method does not score, an option that it does not have, or units that go after single weights went.
    """
    steps: list[ResolvedStep] = []
    for stated in recipe.steps:
        step = resolve_step(stated, consumer)
        if Space.WEIGHT not in step.spaces and any(Space.WEIGHT in before.spaces for before in steps):
            raise TrimlineError("A step removes units after single weights went, and its updates would fill the zeros.",
                                "Make the model smaller first, then sparse.")  # fmt: skip
        steps.append(step)
    return tuple(steps)


def resolve_step(recipe: PruneStep, consumer: Consumer = ANYWHERE) -> ResolvedStep:
    """One step; arguments and errors as of ``resolve_steps``."""
    method = method_named(recipe.method)
    spaces = _spaces(recipe, method)
    options = _options(recipe, method)
    if Space.WEIGHT in spaces:
        _check_weights(recipe)
    if recipe.allocation == "optimal" and not set(spaces) <= set(SUBLAYERS):
        raise TrimlineError(
            "The allocation 'optimal' chooses sizes of ffn and kv_group, and whole blocks have none.", "Leave allocation out."
        )
    step = _of_its_kind(method, {"recipe": recipe, "spaces": spaces, "options": options, "consumer": consumer})
    if recipe.search and not (isinstance(step, UnitStep) or getattr(method, "searches", False)):
        raise TrimlineError(f"The method {recipe.method} decides by itself what goes, and has no sizes to search.", "Leave search out.")
    if recipe.compensation in MAPS and (spaces != (Space.LAYER,) or not isinstance(step, UnitStep)):
        raise TrimlineError(
            f"The compensation {recipe.compensation} stands for whole blocks, and the step removes others, or merges blocks itself.",
            "Use it with a budget of space layer alone, of a method that scores blocks.",
        )
    if isinstance(method, CheckingMethod):
        method.check(step)
    return step


def reads_text(recipe: PruneSlice) -> bool:
    """Whether any step measures anything on the calibration text."""
    return any(step.reads_text for step in resolve_steps(recipe))


def demand_methods(names: Iterable[str]) -> None:
    """Raises TrimlineError where a recipe names a method that there is not; the nearest is named."""
    for name in names:
        method_named(name)


def _of_its_kind(method: Method, stated: dict[str, Any]) -> ResolvedStep:
    """Units are scored wherever the method can; a method that does whole steps does the others itself."""
    if isinstance(method, MeasuringMethod):
        return MeasuringStep(method=method, **stated)
    if isinstance(method, ScoringMethod) and Space.WEIGHT not in stated["spaces"]:
        return _scored(method, stated)
    if isinstance(method, StepMethod):
        return OwnStep(method=method, **stated)
    assert isinstance(method, WeightMethod)
    return WeightStep(method=method, **stated)


def _scored(method: ScoringMethod, stated: dict[str, Any]) -> UnitStep:
    recipe: PruneStep = stated["recipe"]
    own = method if isinstance(method, PoolingMethod) else None
    return UnitStep(
        method=method,
        rule=recipe.allocation or method.allocation,
        pools=recipe.allocation == "optimal" or (recipe.allocation is None and (method.allocation == "raw" or own is not None)),
        sequential=getattr(method, "sequential", False) if recipe.sequential is None else recipe.sequential,
        pooling=own or BY_SCORE,
        **stated,
    )


def _spaces(recipe: PruneStep, method: Method) -> tuple[Space, ...]:
    """What the step is about: as the recipe says, and where a target says nothing, what the method scores of ffn and kv_group.

    A method that scores neither gives whole blocks.
    """
    if recipe.target:
        usual = tuple(space for space in SUBLAYERS if space in method.spaces) or (Space.LAYER,)
        spaces = recipe.target.spaces or usual
    else:
        spaces = recipe.pooled.spaces if recipe.pooled else tuple(recipe.budget)
    beyond = [space.value for space in spaces if space not in method.spaces]
    if beyond:
        raise TrimlineError(
            f"The method {recipe.method} does not score {beyond[0]}; it scores {', '.join(sorted(method.spaces))}.",
            "Use another method for that space, in a step of its own.",
        )
    return spaces


def _options(recipe: PruneStep, method: Method) -> Slice:
    try:
        return method.options.model_validate(recipe.options)
    except ValidationError as error:
        first = error.errors()[0]
        place, valid = ".".join(map(str, first["loc"])), ", ".join(sorted(method.options.model_fields)) or "none"
        raise TrimlineError(
            f"The option {place!r} of the method {recipe.method} is wrong: {first['msg'].removeprefix('Value error, ')}.",
            f"Its options are: {valid}; docs/recipe.md says what they take.",
        ) from None


def _check_weights(step: PruneStep) -> None:
    fraction, budget = Pattern.parse(step.pattern).fraction, step.budget.get(Space.WEIGHT)
    if budget is None or budget.remove is None:
        raise TrimlineError("The budget of space weight names no fraction.", "Write weight: {remove: 0.5}.")
    if fraction is not None and abs(budget.remove - fraction) > 1e-9:
        raise TrimlineError(f"Pattern {step.pattern} removes {fraction:g} of the weights, and the budget says {budget.remove:g}.",
                            f"Write weight: {{remove: {fraction:g}}}.")  # fmt: skip
