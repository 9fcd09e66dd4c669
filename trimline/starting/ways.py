"""Ways to make a model smaller, from the one that loses least: what goes, in which shapes, by which method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import least_experts
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.rebuild.consumers import consumers
from pipeline.rebuild.profiles import check_profile
from pipeline.rebuild.verdicts import ConsumerVerdict

LARGE = 2 * 10**9  # decoder parameters beyond which the gradients that trimline needs take too long on a processor
TILE, TILES = 64, 8  # FFN widths are multiples of 64, and of less where that left fewer than eight to choose from
WORDS = {Space.FFN: "FFN channels", Space.KV_GROUP: "KV groups", Space.EXPERT: "experts"}


@dataclass(frozen=True)
class Way:
    """What goes, and the profile of what is left."""

    spaces: tuple[Space, ...]
    profile: Profile

    @property
    def is_even(self) -> bool:
        """Whether every block loses the same."""
        return self.profile is Profile.UNIFORM

    @property
    def words(self) -> str:
        """What goes, for a sentence."""
        return " and ".join(WORDS[space] for space in self.spaces)

    def method(self, dense: Geometry) -> str:
        """The best method of this repository's results that gives such shapes; the cheap one for a large model."""
        if self.spaces == (Space.EXPERT,):
            return "reap"
        if not self.is_even and dense.decoder_parameters() <= LARGE:
            return "trimline"
        return "cfsp" if self.spaces == (Space.FFN,) else "cfsp_extended"

    def smallest(self, dense: Geometry) -> Geometry:
        """The model that is left when as much goes as can."""
        if Space.EXPERT in self.spaces:
            return with_experts(dense, least_experts(dense))
        tile, heads = tile_of(dense), Space.KV_GROUP in self.spaces
        return dense.with_blocks(
            tuple(
                replace(block, ffn=min(tile, block.ffn), kv_groups=min(1, block.kv_groups) if heads else block.kv_groups)
                for block in dense.blocks
            )
        )

    def shapes(self, dense: Geometry) -> Iterator[Geometry]:
        """Results of every kind that may come out: blocks alike or not, with every number of KV groups."""
        if Space.EXPERT in self.spaces:
            yield self.smallest(dense)
            return
        tile = tile_of(dense)
        most = dense.most(Sublayer.ATTENTION)
        for groups in range(1, most + 1) if Space.KV_GROUP in self.spaces else (most,):
            yield dense.with_blocks(
                tuple(
                    replace(
                        block,
                        ffn=min(block.ffn, tile * (1 if self.is_even else 1 + number % 2)),
                        kv_groups=min(block.kv_groups, groups if self.is_even or number % 2 else most),
                    )
                    for number, block in enumerate(dense.blocks)
                )
            )

    def verdicts(self, dense: Geometry, config: Mapping[str, Any]) -> dict[str, ConsumerVerdict]:
        """What every consumer does with the results, by its name: what it does with the worst.

        Raises:
            TrimlineError: the profile cannot express them.
        """
        found: dict[str, ConsumerVerdict] = {}
        for shape in self.shapes(dense):
            check_profile(dense.family, dense, shape, self.profile, config)
            for verdict in consumers(shape, self.profile, config):
                known = found.get(verdict.consumer)
                if known is None or WORST.index(verdict.loads) < WORST.index(known.loads):
                    found[verdict.consumer] = verdict
        return found


WORST = (False, None, True)  # of what consumers do with a result
# FFN channels alone lose hardly more than both together (docs/results.md), decode as fast, and more programs load the result.
MILDEST = Way((Space.FFN,), Profile.UNIFORM)
WAYS = (
    Way((Space.FFN,), Profile.DECILM),
    Way((Space.FFN,), Profile.FREE),
    Way((Space.FFN, Space.KV_GROUP), Profile.FREE),
    MILDEST,
    Way((Space.FFN, Space.KV_GROUP), Profile.UNIFORM),
)


EXPERTS = Way((Space.EXPERT,), Profile.UNIFORM)  # nearly all of a mixture's weights


def ways_for(dense: Geometry) -> tuple[Way, ...]:
    """What a model can lose, from what loses least."""
    if dense.family.mixture is not None:
        return (EXPERTS,)
    return tuple(way for way in WAYS if Space.KV_GROUP not in way.spaces or dense.most(Sublayer.ATTENTION))


def with_experts(dense: Geometry, count: int) -> Geometry:
    """The model with as many experts in every block that has some."""
    return dense.with_blocks(tuple(replace(block, experts=min(count, block.experts)) for block in dense.blocks))


def expert_counts(dense: Geometry) -> range:
    """How many experts of every block may stay, from the most, all, to the fewest."""
    most = max(block.experts for block in dense.blocks)
    return range(most, least_experts(dense) - 1, -dense.routing.groups)


def tile_of(dense: Geometry) -> int:
    """What FFN widths become multiples of."""
    narrowest = min((block.ffn for block in dense.blocks if block.ffn), default=TILE)
    tile = TILE
    while tile > 1 and narrowest // tile < TILES:
        tile //= 2
    return tile


def demand_ffn(dense: Geometry) -> None:
    """Raises TrimlineError where there is nothing that any way could take."""
    if not any(block.ffn or block.experts for block in dense.blocks):
        raise TrimlineError("No block of this model has an FFN.", "Write a recipe by hand: docs/recipe.md has every key.")
