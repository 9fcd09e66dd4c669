"""What a recipe has made and judged, in order, each as the name of what it makes."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.prune.sharding import why_whole
from trimline.recipe import Recipe
from trimline.stages.names import (
    CURVE,
    LATENCY,
    MEASURED,
    PLAN,
    PREFLIGHT,
    PRUNED,
    REBUILT,
    RECOVERED,
    SETTLED,
    SMALLER,
    SOURCE,
    TEXT,
    Lane,
    Name,
    Shard,
    engine_of,
    evaluation_of,
    export_of,
    tasks_of,
)
from trimline.stages.rounds import timed_step

SHARED = (SOURCE, TEXT)


def jobs(recipe: Recipe, *lanes: Lane, shards: int = 1) -> Iterator[Name]:
    """What makes and judges some models, after ``SHARED``; timing and what follows it stand apart.

    But for a target of time: whether it is met has to be measured, and decides whether it is gone through again. The
    first round's stages stand before that, since they may run beside others.
    """
    if PRUNED in lanes:
        yield from (*deciding(recipe, shards), PLAN, *rebuilding(recipe))
    for lane in lanes:
        yield from judging(recipe, lane)
    if PRUNED in lanes and timed_step(recipe.prune) is not None:
        yield SETTLED
    yield from examining(recipe, *lanes)


def deciding(recipe: Recipe, shards: int = 1) -> Iterator[Name]:
    """What stands before the plan, and is the same for every round towards a target.

    Args:
        recipe: whose steps decide.
        shards: parts that the calibration windows are measured in, where a step's statistics merge.
    """
    yield PREFLIGHT
    if timed_step(recipe.prune) is not None:
        yield LATENCY
    if shards > 1 and not why_whole(recipe.prune):
        yield from (Name("statistics", part=Shard(number, shards)) for number in range(shards))
    yield MEASURED


def rebuilding(recipe: Recipe) -> Iterator[Name]:
    """From the plan to the smaller checkpoint."""
    yield SMALLER
    if recipe.recover:
        yield from (evaluation_of(REBUILT), RECOVERED)


def judging(recipe: Recipe, lane: Lane) -> Iterator[Name]:
    """Accuracy of one model and of what is made of it."""
    yield evaluation_of(lane)
    if recipe.export:
        yield from (export_of(lane), evaluation_of(lane.graph))
    if recipe.build:
        yield from (engine_of(lane), evaluation_of(lane.engine))


def examining(recipe: Recipe, *lanes: Lane) -> Iterator[Name]:
    """Tasks of the lm-eval harness, where the recipe names some: once the models stand, since they decide nothing."""
    if recipe.lm_eval:
        yield from map(tasks_of, lanes)
        yield from [tasks_of(PRUNED.graph)] if PRUNED in lanes and recipe.export else []


def curves(recipe: Recipe) -> Iterator[Name]:
    """Other counts of experts, of the plan that counts. A run draws them; the points of a sweep are such counts themselves."""
    if recipe.draws_curve:
        yield CURVE
