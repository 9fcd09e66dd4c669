"""The rows that the study of searched sizes and of linear maps compares, each a prune step on the same calibration tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.prune.recipe import PruneSlice
from pipeline.sources.recipe import CalibrationWindows

Stated = Mapping[str, Any]  # a step, as a recipe states it


def cfsp(remove: float, **more: Any) -> Stated:
    """CFSP with least squares, a share of the decoder's linear parameters."""
    budget = {"ffn": {"remove": remove, "of": "parameters"}}
    return {"method": "cfsp", "budget": budget, "round_to": 64, "compensation": "least_squares"} | more


def trimline(remove: float, **more: Any) -> Stated:
    """Our own method, heads and channels together."""
    return {"method": "trimline", "pooled": {"remove": remove}, "round_to": 64} | more


def blocks(keep: int, **more: Any) -> Stated:
    """Whole blocks by ShortGPT's measure."""
    return {"method": "block_influence", "options": {"measure": "cosine"}, "budget": {"layer": {"keep": keep}}} | more


# Of few evaluations: at the size of a laptop's model a choice costs as much as the calibration itself.
SEARCH = {"evaluations": 60, "offspring": 8, "survivors": [1], "tokens": [512, 1536], "levels": 4, "switches": 3}

ROWS: dict[str, Stated | None] = {
    "dense": None,
    "blocks-24": blocks(24),
    "blocks-24-map": blocks(24, compensation="linear_map"),
    "cfsp-0.5": cfsp(0.5),
    "cfsp-0.5-search": cfsp(0.5, search=SEARCH),
    "blocks-24-weighted": blocks(24, compensation="weighted_map"),
    "blocks-24-search": blocks(24, search=SEARCH | {"evaluations": 40, "levels": 1}),
    "cfsp-0.3": cfsp(0.3),
    "cfsp-0.3-search": cfsp(0.3, search=SEARCH),
    "trimline-0.5": trimline(0.5),
    "trimline-0.5-search": trimline(0.5, search=SEARCH),
    "trimline-0.3": trimline(0.3),
    "trimline-0.3-search": trimline(0.3, search=SEARCH),
}
COMPARED = {name: name.rpartition("-")[0] for name in ROWS if name.endswith(("-search", "-map", "-weighted"))}


def recipe_of(step: Stated, calibration: CalibrationWindows) -> PruneSlice:
    """What the prune stage is given."""
    return PruneSlice.model_validate({"calibration": calibration.model_dump(), "steps": [dict(step)]})
