"""A step of the recipe, resolved."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.prune.methods import ScoringMethod, method_named
from pipeline.prune.methods.method import CheckingMethod, PoolingMethod
from pipeline.prune.model.masks import Pattern
from pipeline.prune.recipe import Budget, Pool, PruneSlice, PruneStep


def is_sequential(step: PruneStep) -> bool:
    """Whether each block is cut on what the pruned blocks before it give."""
    return getattr(method_named(step.method), "sequential", False) if step.sequential is None else step.sequential


def rule_of(step: PruneStep) -> str:
    """How the step spreads a budget over blocks: as the recipe says, or as its method does."""
    method = method_named(step.method)
    return step.allocation or (method.allocation if isinstance(method, ScoringMethod) else "global")


def pools(step: PruneStep) -> bool:
    """Whether a step with a target shares one budget out over all its spaces by scores, as ``pooled`` does."""
    method = method_named(step.method)
    if not isinstance(method, ScoringMethod):
        return True
    return step.allocation == "optimal" or (step.allocation is None and (method.allocation == "raw" or isinstance(method, PoolingMethod)))


def as_budget(step: PruneStep) -> PruneStep:
    """A step with a target as one with a budget that leaves shapes of the same kind: what may be uneven, before anything is known."""
    if step.target is None:
        return step
    if Space.LAYER not in step.spaces and pools(step):
        stated: dict[str, Any] = {"pooled": Pool(spaces=step.spaces, remove=0.5, allow_empty=step.allow_empty)}
    else:
        stated = {"budget": {space: Budget(remove=0.5) for space in step.spaces}}
    return step.model_copy(update={"target": None} | stated)


def check_steps(recipe: PruneSlice) -> None:
    """What can be known about the steps before anything is measured.

    Raises:
        TrimlineError: an unknown method, a space that the method does not score, an option that it does not have, or
            units that go after single weights went.
    """
    sparse = False
    for step in recipe.steps:
        _check_step(step)
        if sparse and Space.WEIGHT not in step.spaces:
            raise TrimlineError("A step removes units after single weights went, and its updates would fill the zeros.",
                                "Make the model smaller first, then sparse.")  # fmt: skip
        sparse = sparse or Space.WEIGHT in step.spaces


def _check_step(step: PruneStep) -> None:
    method = method_named(step.method)
    beyond = [space.value for space in step.spaces if space not in method.spaces]
    if beyond:
        raise TrimlineError(
            f"The method {step.method} does not score {beyond[0]}; it scores {', '.join(sorted(method.spaces))}.",
            "Use another method for that space, in a step of its own.",
        )
    try:
        method.options.model_validate(step.options)
    except ValidationError as error:
        first = error.errors()[0]
        place, valid = ".".join(map(str, first["loc"])), ", ".join(sorted(method.options.model_fields)) or "none"
        raise TrimlineError(
            f"The option {place!r} of the method {step.method} is wrong: {first['msg'].removeprefix('Value error, ')}.",
            f"Its options are: {valid}; docs/recipe.md says what they take.",
        ) from None
    if Space.WEIGHT in step.spaces:
        _check_weights(step)
    if isinstance(method, CheckingMethod):
        method.check(step)


def _check_weights(step: PruneStep) -> None:
    fraction, budget = Pattern.parse(step.pattern).fraction, step.budget.get(Space.WEIGHT)
    if budget is None or budget.remove is None:
        raise TrimlineError("The budget of space weight names no fraction.", "Write weight: {remove: 0.5}.")
    if fraction is not None and abs(budget.remove - fraction) > 1e-9:
        raise TrimlineError(f"Pattern {step.pattern} removes {fraction:g} of the weights, and the budget says {budget.remove:g}.",
                            f"Write weight: {{remove: {fraction:g}}}.")  # fmt: skip
