"""Plans for tiny models, and the folder that the rebuild stage makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Event, Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan, Step
from pipeline.plan.selection import Selection
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from tests.tiny import tiny_model

Units = list[tuple[int, ...]]
OPTIONS = RunOptions(dtype="float32", threads=1)


@dataclass
class Choice:
    """A selection being made: change the lists in place."""

    blocks: list[int]
    ffn: Units
    kv: Units
    geometry: Geometry = field(repr=False)
    experts: Units | None = None

    @classmethod
    def of(cls, geometry: Geometry) -> Choice:
        everything = Selection.everything(geometry)
        return cls(
            list(everything.blocks),
            list(everything.ffn),
            list(everything.kv_groups),
            geometry,
            everything.experts and list(everything.experts),
        )

    def selection(self) -> Selection:
        return Selection(tuple(self.blocks), tuple(self.ffn), tuple(self.kv), experts=self.experts and tuple(self.experts))


def plan_for(source: Path, choose: Callable[[Choice], None], updates: dict[str, torch.Tensor] | None = None) -> Plan:
    checkpoint = Checkpoint(source)
    choice = Choice.of(checkpoint.geometry)
    choose(choice)
    return Plan(checkpoint.geometry.family, choice.selection(), (Step("by hand", {}, {}, {}),), updates or {})


def rebuilt(tmp: Path, source: Path, plan: Plan, profile: Profile, events: list[Event] | None = None) -> Path:
    """Writes the plan and runs the stage; returns its folder."""
    folder, out = tmp / "plan", tmp / "out"
    folder.mkdir()
    out.mkdir()
    plan.write(folder)
    rebuild(source, folder, RebuildSlice(profile=profile), OPTIONS, out, Events((events if events is not None else []).append))
    return out


def rebuilt_tiny(tmp: Path, family: str, choose: Callable[[Choice], None], profile: Profile, **overrides: Any) -> Path:
    source = tiny_model(family, tmp / "dense", **overrides)
    return rebuilt(tmp, source, plan_for(source, choose), profile)


def same_width(choice: Choice) -> None:
    """64 of 96 channels, other ones in every block that has any."""
    choice.ffn = [channels and tuple(range(i, 3 * i + 64, 1))[:64] for i, channels in enumerate(choice.ffn)]


def fewer_groups(choice: Choice) -> None:
    """Half of the KV groups, other ones in every block that has any."""
    groups = max(map(len, choice.kv))
    choice.kv = [old and tuple(range(i % 2, groups, 2)) for i, old in enumerate(choice.kv)]


def fewer_experts(choice: Choice) -> None:
    """Six of eight experts, other ones in every block; as many from each half, since some routers choose in groups."""
    assert choice.experts is not None
    gone = ({1, 6}, {0, 7}, {2, 5}, {3, 4})
    choice.experts = [units and tuple(sorted(set(units) - gone[number % 4])) for number, units in enumerate(choice.experts)]


def fewer_blocks(choice: Choice) -> None:
    choice.blocks.remove(1)


def absent_parts(choice: Choice) -> None:
    """Uneven widths; block 1 without attention, block 3 without FFN, block 2 gone: what decilm can express."""
    choice.ffn[0] = tuple(range(0, 96, 2))
    choice.kv[1] = ()
    choice.ffn[3] = ()
    choice.blocks.remove(2)


def anything(choice: Choice) -> None:
    """What only free can express: KV groups that differ, no attention in the first block."""
    feeding = [i for i, channels in enumerate(choice.ffn) if channels]
    attending = [i for i, groups in enumerate(choice.kv) if groups]
    choice.ffn[feeding[1]] = tuple(range(5, 37))
    choice.ffn[feeding[-1]] = ()
    if attending:
        choice.kv[attending[0]] = ()
        choice.kv[attending[len(attending) // 2]] = (1,)
