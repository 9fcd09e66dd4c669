"""How artefacts name units, scores and statistics: every key that holds a space, a block or a sublayer, both ways.

| file | name | of |
|---|---|---|
| plan.json, ``kept`` and ``errors by size`` | ``ffn.3``, ``layer`` | units of a block; of the whole model |
| scores.safetensors | ``step0.ffn.3`` | what a step scored a block's units |
| | ``step0.routed.3`` | how many calibration tokens chose each of a block's routed experts |
| measured.safetensors | ``scores.ffn.3`` | what the first shot scores them |
| | ``routed.3.tokens`` | a sum over what a block's routed experts give |
| | ``3.channels.squares`` | a statistic of what a block's projections read at a point |
| | ``attention.3.errors`` | what trimline measures of a block's sublayer |
| | ``squares/mlp.down_proj``, ``inputs/channels`` | a sum of gradients, in the folder of a block |

In memory there is ``IndexSet``.
"""

from __future__ import annotations

from pipeline.architecture.families import Point, Sublayer
from pipeline.architecture.spaces import SPACES, SUBLAYERS, IndexSet, Space

SCORES, STEP, ROUTED = "scores", "step", "routed"
# What a gradient's sums are keyed by in memory: projections, points or sublayers.
KEYED_BY: dict[str, type[str] | type[Point] | type[Sublayer]] = {
    "absolute": str,
    "squares": str,
    "outputs": str,
    "inputs": Point,
    "totals": Point,
    "masks": Sublayer,
    "experts": str,
}


def units_name(space: Space, block: int | None = None) -> str:
    """``ffn.3``; without a block, of what the model has one set of: ``layer``."""
    return space.value if block is None else f"{space}.{block}"


def units_named(name: str) -> tuple[Space, int | None]:
    """What ``units_name`` was given.

    Raises:
        ValueError: there is no such space, or no number.
    """
    space, dot, block = name.partition(".")
    return Space(space), int(block) if dot else None


def step_scores_name(step: int, units: IndexSet) -> str:
    """``step0.ffn.3``."""
    return f"{STEP}{step}.{units_name(*units)}"


def step_scores_named(name: str) -> tuple[int, IndexSet] | None:
    """What ``step_scores_name`` was given; None for names of anything else, and of usage."""
    step, _, units = name.partition(".")
    return None if units.startswith(f"{ROUTED}.") else (int(step.removeprefix(STEP)), _index_set(units))


def usage_name(step: int, block: int) -> str:
    """``step0.routed.3``."""
    return f"{STEP}{step}.{ROUTED}.{block}"


def usage_named(name: str) -> tuple[int, int] | None:
    """What ``usage_name`` was given; None for names of anything else."""
    step, _, rest = name.partition(".")
    kind, _, block = rest.partition(".")
    return (int(step.removeprefix(STEP)), int(block)) if kind == ROUTED else None


def first_scores_name(units: IndexSet) -> str:
    """``scores.ffn.3``."""
    return f"{SCORES}.{units_name(*units)}"


def first_scores_named(name: str) -> IndexSet | None:
    """What ``first_scores_name`` was given; None for names of anything else."""
    kind, _, units = name.partition(".")
    return _index_set(units) if kind == SCORES else None


def statistic_name(block: int, point: Point, statistic: str) -> str:
    """``3.channels.squares``."""
    return f"{block}.{point}.{statistic}"


def statistic_named(name: str) -> tuple[int, Point, str]:
    """What ``statistic_name`` was given."""
    block, point, statistic = name.split(".")
    return int(block), Point(point), statistic


def routed_name(block: int, statistic: str) -> str:
    """``routed.3.tokens``."""
    return f"{ROUTED}.{block}.{statistic}"


def routed_named(name: str) -> tuple[int, str] | None:
    """What ``routed_name`` was given; None for names of anything else."""
    kind, _, rest = name.partition(".")
    block, _, statistic = rest.partition(".")
    return (int(block), statistic) if kind == ROUTED else None


def curve_name(units: IndexSet, part: str) -> str:
    """``attention.3.errors``: trimline names sublayers."""
    return f"{SUBLAYERS[units.space]}.{units.block}.{part}"


def curve_named(name: str) -> tuple[IndexSet, str]:
    """What ``curve_name`` was given."""
    sublayer, block, part = name.split(".")
    return IndexSet(SPACES[Sublayer(sublayer)], int(block)), part


def gradient_name(kind: str, key: str) -> str:
    """``squares/mlp.down_proj``: names of projections hold dots."""
    return f"{kind}/{key}"


def gradient_named(name: str) -> tuple[str, str]:
    """What ``gradient_name`` was given, the key of its own type."""
    kind, _, key = name.partition("/")
    return kind, KEYED_BY[kind](key)


def _index_set(name: str) -> IndexSet:
    space, block = units_named(name)
    if block is None:
        raise ValueError(f"{name} names no block")
    return IndexSet(space, block)
