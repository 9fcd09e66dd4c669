"""What one block is: its kinds, and the units that are left in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.architecture.families import ATTENTION, DENSE, NONE, Carried, Linear, Part, Sublayer


@dataclass(frozen=True)
class BlockShape:
    """Units left in one block, and which kinds of mixer and FFN it has.

    Of an ordinary kind 0 units mean that the sublayer is absent. A carried kind has no units, and is there as long as its block is.

    Attributes:
        ffn: channels that every token goes through; beside experts those of the shared expert.
        kv_groups: KV heads, each with its query heads.
        mixer, feeds: the kinds.
        experts: that a router chooses from; 0 without a mixture.
        expert_width: intermediate channels of each expert.
    """

    ffn: int
    kv_groups: int
    mixer: str = ATTENTION
    feeds: str = DENSE
    experts: int = 0
    expert_width: int = 0

    def units(self, sublayer: Sublayer) -> int:
        return self.ffn if sublayer is Sublayer.FFN else self.kv_groups

    def kind(self, sublayer: Sublayer) -> str:
        """Of its mixer or its FFN."""
        return self.feeds if sublayer is Sublayer.FFN else self.mixer

    def is_ordinary(self, sublayer: Sublayer) -> bool:
        """Whether the sublayer is of the kind that has units."""
        return self.kind(sublayer) == sublayer.ordinary

    def has(self, sublayer: Sublayer | None) -> bool:
        """Whether the sublayer is there; None stands for any. Routed experts are an FFN too."""
        if sublayer is None:
            return any(self.has(one) for one in Sublayer)
        if not self.is_ordinary(sublayer):
            return self.kind(sublayer) != NONE
        return bool(self.units(sublayer) or (sublayer is Sublayer.FFN and self.experts))

    def holds(self, part: Part) -> bool:
        """Whether a part of the family is there."""
        if part.sublayer is None:
            return self.has(None)
        if isinstance(part, Carried) and part.of_experts:
            return bool(self.experts)
        there = self.units(part.sublayer) if isinstance(part, Linear) else self.has(part.sublayer)
        return bool(there) and part.stands_in(self.kind(part.sublayer))

    def with_units(self, sublayer: Sublayer, units: int) -> BlockShape:
        """The same block with another size of one sublayer."""
        return replace(self, ffn=units) if sublayer is Sublayer.FFN else replace(self, kv_groups=units)

    @classmethod
    def alone(cls, sublayer: Sublayer, units: int = 1) -> BlockShape:
        """A block of one sublayer."""
        return cls(0, 0).with_units(sublayer, units)


@dataclass(frozen=True)
class Routing:
    """How a mixture chooses.

    Attributes:
        chosen: experts of each token; 0 where there is no mixture.
        groups: that experts are numbered in, one after the other.
        chosen_groups: that the experts of a token are from.
    """

    chosen: int = 0
    groups: int = 1
    chosen_groups: int = 1
