"""The sizes of a model, per block, read from its config; parameters and FLOPs counted from them.

A checkpoint written here with uneven blocks names its original architecture in ``base_model_type`` and its block
sizes in ``block_configs`` (the schema that vLLM's DeciLM reads); every other checkpoint has one size for all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.architecture.families import Axis, Carried, Family, Linear, Sublayer, family_named
from pipeline.architecture.families.kinds import KindCost, Size, switches_in, worked_out
from pipeline.architecture.reading import bad, biases_of, block_shapes, context_of, routing_of, size_of, size_values, todays_keys
from pipeline.architecture.shapes import BlockShape, Routing
from pipeline.architecture.wrappers import Wrapper
from pipeline.common.errors import shown

__all__ = ["MATRIX", "BlockShape", "Geometry"]

MATRIX = 2  # axes from which on a carried tensor counts as weights that multiply, as a projection's do


@dataclass(frozen=True)
class Geometry:
    """Everything about sizes that surgery, export and counting need.

    Attributes:
        family: the architecture's description.
        hidden: width of the residual stream.
        head_dim: channels per head.
        queries_per_group: query heads that read one KV head.
        vocab: rows of the token table.
        tied: the output head is the token table.
        positions: rows of a learned position table, 0 without one.
        context: tokens that the model was made to read at once, 0 where its config does not say.
        blocks: one shape per block.
        switches: the boolean config keys that decide about biases and about carried tensors.
        sizes: the config keys that sizes of carried tensors are worked out from.
        biases: projections, by their names inside a block, that have one whatever family and switches say.
        within: what holds this language model, where its folder is that of a larger model.
        beside: parameters of that larger model that are not the language model's.
        pinned: its first blocks that image features are added after, each by its number, so that none of them can go.
        routing: how it chooses among experts.
    """

    family: Family
    hidden: int
    head_dim: int
    queries_per_group: int
    vocab: int
    tied: bool
    positions: int
    blocks: tuple[BlockShape, ...]
    switches: Mapping[str, bool]
    biases: frozenset[str] = frozenset()
    context: int = 0
    within: Wrapper | None = None
    beside: int = 0
    pinned: int = 0
    routing: Routing = Routing()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Geometry:
        """Reads a ``config.json``.

        Raises:
            TrimlineError: unsupported architecture, or a size that is missing, not an integer, not positive or absurd.
        """
        family = family_named(str(config.get("base_model_type") or config.get("model_type")))
        config = todays_keys(config, family)
        for key, needed in family.requires.items():
            if config[key] != needed:
                raise bad(key, f"only {needed!r} is supported for {family.model_type}, and it is {shown(config[key])}")
        hidden = size_of(config, "hidden_size")
        # Sizes of the dense model: a decilm config states the heads that are left, which may be fewer.
        heads = size_of(config, family.heads_key)
        groups = heads if family.kv_heads_key is None else size_of(config, family.kv_heads_key, default=heads)
        head_dim = size_of(config, "head_dim", default=hidden // heads)
        if heads % groups:
            raise bad("num_key_value_heads", f"{groups} does not divide the {heads} query heads")
        return cls(
            family=family,
            hidden=hidden,
            head_dim=head_dim,
            queries_per_group=heads // groups,
            vocab=size_of(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            positions=0 if family.position_offset is None else size_of(config, "max_position_embeddings") + family.position_offset,
            blocks=block_shapes(config, family, groups),
            switches={key: bool(config.get(key, False)) for key in _switches(family)},
            biases=biases_of(config, family),
            context=context_of(config),
            routing=routing_of(config, family),
            sizes=size_values(config, family),
        )

    def axis_size(self, axis: Axis, block: BlockShape) -> int:
        """How many indices ``axis`` has in a block of this shape."""
        return {
            Axis.RESIDUAL: self.hidden,
            Axis.FFN: block.ffn,
            Axis.QUERY: block.kv_groups * self.unit_width(Axis.QUERY),
            Axis.GATED_QUERY: block.kv_groups * self.unit_width(Axis.GATED_QUERY),
            Axis.KV: block.kv_groups * self.head_dim,
            Axis.GROUPED: block.kv_groups * self.unit_width(Axis.GROUPED),
            Axis.HEADS: block.kv_groups * self.queries_per_group,
            Axis.HEAD: self.head_dim,
            Axis.EXPERT: block.experts,
            Axis.EXPERT_CHANNEL: block.expert_width,
            Axis.EXPERT_PAIR: 2 * block.expert_width,
        }[axis]

    def unit_width(self, axis: Axis) -> int:
        """Consecutive indices on ``axis`` that belong to one unit of its space."""
        queries = self.queries_per_group * self.head_dim
        grouped = queries + 2 * self.head_dim
        heads = self.queries_per_group
        return {
            Axis.FFN: 1,
            Axis.EXPERT: 1,
            Axis.QUERY: queries,
            Axis.GATED_QUERY: 2 * queries,
            Axis.KV: self.head_dim,
            Axis.GROUPED: grouped,
            Axis.HEADS: heads,
        }[axis]

    def has_bias(self, linear: Linear) -> bool:
        return linear.name in self.biases or (self.switches[linear.bias] if isinstance(linear.bias, str) else linear.bias)

    def linear_shape(self, linear: Linear, block: BlockShape) -> tuple[int, int]:
        """(rows, columns) of a projection in a block of this shape."""
        return sum(self.axis_size(axis, block) for axis in linear.rows), self.axis_size(linear.columns, block)

    def linears(self, block: BlockShape) -> Iterator[tuple[Linear, tuple[int, int]]]:
        """The projections present in a block of this shape, with their (rows, columns)."""
        for linear in self.family.linears:
            if block.holds(linear):
                yield linear, self.linear_shape(linear, block)

    def carried(self, block: BlockShape) -> Iterator[tuple[Carried, tuple[int, ...]]]:
        """The carried tensors present in a block of this shape, with their shapes."""
        for carried in self.family.carried:
            if block.holds(carried) and all(self.switches[key] is wanted for key, wanted in switches_in(carried.when).items()):
                yield carried, tuple(self.size(size, block) for size in carried.shape)

    def size(self, size: Size, block: BlockShape) -> int:
        """What a size comes to in a block of this shape."""
        if isinstance(size, int):
            return size
        return self.axis_size(size, block) if isinstance(size, Axis) else worked_out(size, self.sizes)

    def ordinary(self, sublayer: Sublayer) -> tuple[BlockShape, ...]:
        """The blocks whose sublayer is of the kind that has units, whether any are left or not."""
        return tuple(block for block in self.blocks if block.is_ordinary(sublayer))

    def most(self, sublayer: Sublayer) -> int:
        """Units of the block that has most of them; 0 where no block has any."""
        return max((block.units(sublayer) for block in self.blocks), default=0)

    def decoder_parameters(self) -> int:
        """Weights of all projections inside the blocks: the base of every 'fraction of parameters' here.

        Matrices and convolutions that are carried count as well. Biases, norms, embeddings and the output head are not counted.
        """
        return sum(self.block_parameters(block) for block in self.blocks)

    def block_parameters(self, block: BlockShape) -> int:
        carried = sum(math.prod(shape) for part, shape in self.carried(block) if part.trained and len(shape) >= MATRIX)
        return carried + sum(rows * columns for _, (rows, columns) in self.linears(block))

    def active_parameters(self) -> int:
        """Weights inside the blocks that one token is multiplied with: of the experts those that are chosen."""
        return sum(self._active(block) for block in self.blocks)

    def _active(self, block: BlockShape) -> int:
        unused = max(0, block.experts - self.routing.chosen)
        return self.block_parameters(block) - unused * self.expert_parameters(block)

    def expert_parameters(self, block: BlockShape) -> int:
        """Weights of one routed expert of a block, without its row of the router."""
        return 3 * self.hidden * block.expert_width

    def unit_parameters(self, sublayer: Sublayer) -> int:
        """Weights that one unit of a sublayer has rows or columns of."""
        one, two = (self.block_parameters(BlockShape.alone(sublayer, units)) for units in (1, 2))
        return two - one

    def total_parameters(self) -> int:
        """Every number in the checkpoint, a tied head counted once."""
        return self.beside + self.language_parameters()

    def language_parameters(self) -> int:
        """Every number of the language model."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor of the language model in a checkpoint of this geometry; a tied head is none."""
        family = self.family
        for name, rows in zip(family.embeddings, (self.vocab, self.positions), strict=False):
            yield f"{name}.weight", (rows, self.hidden)
        for number, block in enumerate(self.blocks):
            yield from self._block_tensors(number, block)
        for name in family.final_norms:
            yield from _with_bias(name, (self.hidden,), self.hidden if family.norm_bias else 0)
        if not self.tied:
            yield f"{family.head}.weight", (self.vocab, self.hidden)
        if family.head_bias:
            yield f"{family.head}.bias", (self.vocab,)

    def _block_tensors(self, number: int, block: BlockShape) -> Iterator[tuple[str, tuple[int, ...]]]:
        for linear, shape in self.linears(block):
            yield from _with_bias(self.family.module(number, linear.name), shape, shape[0] if self.has_bias(linear) else 0)
        for norm in self.family.norms:
            if block.holds(norm):
                size = self.axis_size(norm.axis, block)
                yield from _with_bias(self.family.module(number, norm.name), (size,), size if norm.bias else 0)
        for carried, sizes in self.carried(block):
            yield self.family.module(number, carried.name), sizes

    def decoder_flops(self, context: int) -> int:
        """Floating-point operations of the blocks for one token that sees ``context`` tokens (a multiply-add is two)."""
        return sum(self.block_flops(block, context) for block in self.blocks)

    def block_flops(self, block: BlockShape, context: int) -> int:
        """Of one block: a multiply-add per weight that a token meets, attention over ``context`` tokens, and what a carried kind does beside its tensors."""
        attention = 4 * context * self.axis_size(Axis.QUERY, block)
        seen = sum(self._all_of(cost.attended, block) for cost in self.costs(block))
        recurrent = sum(cost.operations * self._all_of(cost.recurrent, block) for cost in self.costs(block))
        return 2 * self._active(block) + attention + context * seen + recurrent

    def costs(self, block: BlockShape) -> tuple[KindCost, ...]:
        """Of the carried kinds that a block has, and of what stands beside its attention."""
        costs = self.family.kinds.costs
        return tuple(costs[block.kind(sublayer)] for sublayer in Sublayer if block.has(sublayer) and block.kind(sublayer) in costs)

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """What every block keeps of a token: keys and values, or what a carried kind keeps instead."""
        return sum(self._cached(block) for block in self.blocks) * bytes_per_value

    def cache_numbers(self, context: int) -> int:
        """Numbers kept of one sequence of ``context`` tokens: of every token, and whatever the length."""
        return context * self.kv_bytes_per_token(1) + sum(self.block_state(block) for block in self.blocks)

    def block_state(self, block: BlockShape) -> int:
        """Numbers that one block keeps of a sequence, whatever its length."""
        return sum(self._all_of(cost.state, block) for cost in self.costs(block))

    def keeps_tokens(self, block: BlockShape) -> bool:
        """Whether a block keeps something of every token, as attention does and a recurrent mixer does not."""
        return self._cached(block) > 0

    def _cached(self, block: BlockShape) -> int:
        carried = sum(self._all_of(cost.cached, block) for cost in self.costs(block))
        return 2 * self.axis_size(Axis.KV, block) + carried

    def _all_of(self, sizes: tuple[Size, ...], block: BlockShape) -> int:
        return sum(self.size(size, block) for size in sizes)

    def with_blocks(self, blocks: tuple[BlockShape, ...]) -> Geometry:
        return replace(self, blocks=blocks)

    @property
    def is_uniform(self) -> bool:
        """Whether blocks differ in their kinds alone, which is what a stock class builds."""
        alike = len({block.experts for block in self.blocks if block.experts}) <= 1
        return alike and all(len({block.units(sublayer) for block in self.ordinary(sublayer)}) <= 1 for sublayer in Sublayer)


def _switches(family: Family) -> set[str]:
    return {ln.bias for ln in family.linears if isinstance(ln.bias, str)} | {
        key for part in family.carried for key in switches_in(part.when)
    }


def _with_bias(module: str, shape: tuple[int, ...], bias: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{module}.weight", shape
    if bias:
        yield f"{module}.bias", (bias,)
