"""Checkpoint folders for the export tests: stock ones, and ones whose blocks differ in every way that is allowed."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint import Checkpoint
from pipeline.events import Events
from pipeline.options import RunOptions
from pipeline.plan import Plan, Selection
from pipeline.rebuild.stage import rebuild
from pipeline.recipe import Profile, RebuildSlice
from tests.tiny import tiny_model

FFN = (64, 96, 0, 32)  # units kept per block: the third has no FFN,
KV_GROUPS = (1, 0, 2, 1)  # the second no attention
ATTENTION_FIRST_GONE = (0, 1, 2, 1)
OPTIONS = RunOptions(threads=1)


def stock(family: str, folder: Path, **overrides: object) -> Path:
    return tiny_model(family, folder / family, **{"num_hidden_layers": 2} | overrides)


def uneven(family: str, folder: Path, kv_groups: tuple[int, ...] = KV_GROUPS) -> Path:
    dense = tiny_model(family, folder / f"{family}-dense")
    geometry = Checkpoint(dense).geometry
    selection = Selection(tuple(range(4)), tuple(tuple(range(n)) for n in FFN), tuple(tuple(range(n)) for n in kv_groups))
    plan, out = folder / f"{family}-plan", folder / f"{family}-uneven"
    plan.mkdir()
    out.mkdir()
    Plan(geometry.family, selection, ()).write(plan)
    rebuild(dense, plan, RebuildSlice(profile=Profile.FREE), OPTIONS, out, Events())
    return out
