"""Checkpoint folders for the export tests: stock ones, and ones whose blocks differ in every way that is allowed."""

from __future__ import annotations

from pathlib import Path

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from tests.tiny import tiny_model

FFN = (64, 96, 0, 32)  # units kept per block: the third has no FFN,
KV_GROUPS = (1, 0, 2, 1)  # the second no attention
ATTENTION_FIRST_GONE = (0, 1, 2, 1)
OPTIONS = RunOptions(threads=1)


def stock(family: str, folder: Path, **overrides: object) -> Path:
    return tiny_model(family, folder / family, **{"num_hidden_layers": 2} | overrides)


def smaller(family: str, folder: Path, kv_groups: tuple[int, ...] = (0,)) -> Path:
    """A stock model without a third of its FFN channels and, by default, half of its KV groups, blocks alike: profile ``uniform``."""
    dense = stock(family, folder)
    geometry = Checkpoint(dense).geometry
    blocks = range(len(geometry.blocks))
    kept = Selection(tuple(blocks), tuple(tuple(range(64)) for _ in blocks), tuple(kv_groups for _ in blocks))
    return rebuilt(dense, kept, folder / f"{family}-smaller", Profile.UNIFORM)


def uneven(family: str, folder: Path, kv_groups: tuple[int, ...] = KV_GROUPS, **overrides: object) -> Path:
    dense = tiny_model(family, folder / f"{family}-dense", **overrides)
    selection = Selection(tuple(range(4)), tuple(tuple(range(n)) for n in FFN), tuple(tuple(range(n)) for n in kv_groups))
    return rebuilt(dense, selection, folder / f"{family}-uneven", Profile.FREE)


def rebuilt(dense: Path, selection: Selection, out: Path, profile: Profile = Profile.FREE) -> Path:
    """The dense model cut to a selection, through the rebuild stage."""
    plan = out.with_name(f"{out.name}-plan")
    plan.mkdir()
    out.mkdir()
    Plan(Checkpoint(dense).geometry.family, selection, ()).write(plan)
    rebuild(dense, plan, RebuildSlice(profile=profile), OPTIONS, out, Events())
    return out
