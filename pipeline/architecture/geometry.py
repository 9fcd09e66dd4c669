"""The sizes of a model, per block, read from its config; parameters and FLOPs counted from them.

A checkpoint written here with uneven blocks names its original architecture in ``base_model_type`` and its block
sizes in ``block_configs`` (the schema that vLLM's DeciLM reads); every other checkpoint has one size for all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.architecture.families import Axis, Family, Linear, Mixture, Sublayer, family_named
from pipeline.architecture.wrappers import Wrapper
from pipeline.common.errors import TrimlineError, shown

MOST = 2**31  # of any size; beyond it a config is damaged, and counting with it would fill the memory
STRETCHED = ("linear", "dynamic", "yarn")  # rotary embeddings that reach as many times as far as their factor says
MOST_BLOCKS = 2**12  # counting tensors takes a hundred microseconds per block


@dataclass(frozen=True)
class BlockShape:
    """Units left in one block: intermediate channels, KV groups and routed experts. 0 means that there are none.

    Attributes:
        ffn: channels that every token goes through; beside experts those of the shared expert.
        kv_groups: KV heads, each with its query heads.
        experts: that a router chooses from.
        expert_width: intermediate channels of each expert.
    """

    ffn: int
    kv_groups: int
    experts: int = 0
    expert_width: int = 0

    def units(self, sublayer: Sublayer) -> int:
        return self.ffn if sublayer is Sublayer.FFN else self.kv_groups

    def has(self, sublayer: Sublayer | None) -> bool:
        """Whether the sublayer is there; None stands for any. Routed experts are an FFN too."""
        if sublayer is Sublayer.ATTENTION:
            return bool(self.kv_groups)
        return bool(self.ffn or self.experts or (sublayer is None and self.kv_groups))

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
        switches: the boolean config keys that decide about biases.
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

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Geometry:
        """Reads a ``config.json``.

        Raises:
            TrimlineError: unsupported architecture, or a size that is missing, not an integer, not positive or absurd.
        """
        family = family_named(str(config.get("base_model_type") or config.get("model_type")))
        config = {**family.defaults, **config}
        for key, needed in family.requires.items():
            if config[key] != needed:
                raise _bad(key, f"only {needed!r} is supported for {family.model_type}, and it is {shown(config[key])}")
        hidden = _size(config, "hidden_size")
        # Sizes of the dense model: a decilm config states the heads that are left, which may be fewer.
        heads = _size(config, family.heads_key)
        groups = heads if family.kv_heads_key is None else _size(config, family.kv_heads_key, default=heads)
        head_dim = _size(config, "head_dim", default=hidden // heads)
        if heads % groups:
            raise _bad("num_key_value_heads", f"{groups} does not divide the {heads} query heads")
        return cls(
            family=family,
            hidden=hidden,
            head_dim=head_dim,
            queries_per_group=heads // groups,
            vocab=_size(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            positions=0 if family.position_offset is None else _size(config, "max_position_embeddings") + family.position_offset,
            blocks=_block_shapes(config, family, groups),
            switches={ln.bias: bool(config.get(ln.bias, False)) for ln in family.linears if isinstance(ln.bias, str)},
            biases=_biases(config, family),
            context=_context(config),
            routing=_routing(config, family),
        )

    def axis_size(self, axis: Axis, block: BlockShape) -> int:
        """How many indices ``axis`` has in a block of this shape."""
        return {
            Axis.RESIDUAL: self.hidden,
            Axis.FFN: block.ffn,
            Axis.QUERY: block.kv_groups * self.unit_width(Axis.QUERY),
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
        return {Axis.FFN: 1, Axis.EXPERT: 1, Axis.QUERY: queries, Axis.KV: self.head_dim, Axis.GROUPED: grouped, Axis.HEADS: heads}[axis]

    def has_bias(self, linear: Linear) -> bool:
        return linear.name in self.biases or (self.switches[linear.bias] if isinstance(linear.bias, str) else linear.bias)

    def linear_shape(self, linear: Linear, block: BlockShape) -> tuple[int, int]:
        """(rows, columns) of a projection in a block of this shape."""
        return sum(self.axis_size(axis, block) for axis in linear.rows), self.axis_size(linear.columns, block)

    def linears(self, block: BlockShape) -> Iterator[tuple[Linear, tuple[int, int]]]:
        """The projections present in a block of this shape, with their (rows, columns)."""
        for linear in self.family.linears:
            if block.units(linear.sublayer):
                yield linear, self.linear_shape(linear, block)

    def decoder_parameters(self) -> int:
        """Weights of all projections inside the blocks: the base of every 'fraction of parameters' here.

        Biases, norms, embeddings and the output head are not counted.
        """
        return sum(self.block_parameters(block) for block in self.blocks)

    def block_parameters(self, block: BlockShape) -> int:
        return sum(rows * columns for _, (rows, columns) in self.linears(block)) + self._routed_parameters(block, block.experts)

    def active_parameters(self) -> int:
        """Weights inside the blocks that one token is multiplied with: of the experts those that are chosen."""
        return sum(self._active(block) for block in self.blocks)

    def _active(self, block: BlockShape) -> int:
        unused = max(0, block.experts - self.routing.chosen)
        return self.block_parameters(block) - unused * self.expert_parameters(block)

    def expert_parameters(self, block: BlockShape) -> int:
        """Weights of one routed expert of a block, without its row of the router."""
        return 3 * self.hidden * block.expert_width

    def _routed_parameters(self, block: BlockShape, experts: int) -> int:
        return experts * (self.expert_parameters(block) + self.hidden)

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
            if block.has(norm.sublayer):
                size = self.axis_size(norm.axis, block)
                yield from _with_bias(self.family.module(number, norm.name), (size,), size if norm.bias else 0)
        for carried in self.family.carried:
            if block.experts if Axis.EXPERT in carried.shape else block.has(carried.sublayer):
                sizes = (self.axis_size(size, block) if isinstance(size, Axis) else size for size in carried.shape)
                yield self.family.module(number, carried.name), tuple(sizes)

    def decoder_flops(self, context: int) -> int:
        """Floating-point operations of the blocks for one token that sees ``context`` tokens (a multiply-add is two)."""
        return sum(self.block_flops(block, context) for block in self.blocks)

    def block_flops(self, block: BlockShape, context: int) -> int:
        attention = 4 * context * self.axis_size(Axis.QUERY, block)
        return 2 * self._active(block) + attention

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        return sum(2 * self.axis_size(Axis.KV, block) * bytes_per_value for block in self.blocks)

    def with_blocks(self, blocks: tuple[BlockShape, ...]) -> Geometry:
        return replace(self, blocks=blocks)

    @property
    def is_uniform(self) -> bool:
        return len(set(self.blocks)) == 1


def _with_bias(module: str, shape: tuple[int, ...], bias: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{module}.weight", shape
    if bias:
        yield f"{module}.bias", (bias,)


def _block_shapes(config: Mapping[str, Any], family: Family, groups: int) -> tuple[BlockShape, ...]:
    if "block_configs" not in config:
        shape = BlockShape(_ffn_width(config, family), groups, *_experts(config, family))
        return (shape,) * _size(config, family.layers_key, most=MOST_BLOCKS)
    heads = _size(config, family.heads_key)
    try:
        shapes = tuple(_block_shape(entry, heads) for entry in config["block_configs"])
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise _bad("block_configs", f"an entry cannot be read ({type(error).__name__}: {error})") from None
    if not shapes or any(not 0 <= size <= MOST for shape in shapes for size in (shape.ffn, shape.kv_groups)):
        raise _bad("block_configs", "it is empty or holds sizes that no model has")
    return shapes


def _ffn_width(config: Mapping[str, Any], family: Family) -> int:
    """Channels that every token goes through."""
    if family.ffn_key is not None:
        return _size(config, family.ffn_key)
    keys = () if family.mixture is None else family.mixture.shared_keys
    return math.prod(_size(config, key) for key in keys) if keys else 0


def _experts(config: Mapping[str, Any], family: Family) -> tuple[int, int]:
    """How many, and how wide."""
    if family.mixture is None:
        return 0, 0
    return _size(config, stated_count(config, family.mixture)), _size(config, family.mixture.width_key)


def stated_count(config: Mapping[str, Any], mixture: Mixture) -> str:
    """The key by which a config says how many experts there are: of several the one that counts."""
    return next((key for key in mixture.count_keys if config.get(key) is not None), mixture.count_keys[0])


def demand_choice(geometry: Geometry, experts: int, where: str = "every block") -> None:
    """Whether routers find as many experts as they choose for every token, in groups of one size.

    Args:
        geometry: of the model.
        experts: that stay in a block.
        where: for the sentence.

    Raises:
        TrimlineError: they do not; says how many have to stay.
    """
    routing, mixture = geometry.routing, geometry.family.mixture
    assert mixture is not None
    if experts % routing.groups:
        raise TrimlineError(
            f"{experts} experts in {where} are not the same number from each of the {routing.groups} groups that routers choose in.",
            f"Keep a multiple of {routing.groups}.",
        )
    needed = least_experts(geometry)
    if experts < needed:
        within = f", from {routing.chosen_groups} of {routing.groups} groups" if routing.groups > 1 else ""
        raise TrimlineError(
            f"{experts} experts in {where} are too few: {routing.chosen} are chosen for every token{within}.", f"Keep at least {needed}."
        )


def least_experts(geometry: Geometry) -> int:
    """The fewest experts of a block that routers can choose among."""
    routing, mixture = geometry.routing, geometry.family.mixture
    assert mixture is not None
    per_group = math.ceil(routing.chosen / routing.chosen_groups)
    return routing.groups * max(per_group, mixture.group_best if mixture.groups_key else 1)


def _routing(config: Mapping[str, Any], family: Family) -> Routing:
    if (mixture := family.mixture) is None:
        return Routing()
    chosen, experts = _size(config, mixture.chosen_key), _size(config, stated_count(config, mixture))
    if chosen > experts:
        raise _bad(mixture.chosen_key, f"{chosen} experts are chosen of {experts}")
    if mixture.groups_key is None:
        return Routing(chosen)
    groups = _size(config, mixture.groups_key, default=1)
    if experts % groups:
        raise _bad(mixture.groups_key, f"{groups} groups do not divide the {experts} experts")
    return Routing(chosen, groups, _size(config, mixture.chosen_groups_key, default=1))


def _biases(config: Mapping[str, Any], family: Family) -> frozenset[str]:
    """Of a config written here; others may mean something else by that key."""
    named = config.get("biases") if "block_configs" in config else None
    if named is None:
        return frozenset()
    known = {linear.name for linear in family.linears}
    if not isinstance(named, list) or not all(isinstance(name, str) and name in known for name in named):
        raise _bad("biases", f"it is no list of projections of {family.model_type}")
    return frozenset(named)


def _context(config: Mapping[str, Any]) -> int:
    """What max_position_embeddings says; where a rotary embedding is stretched by a factor, what the stretched one reaches.

    Some configs state the context after stretching, others before it (Qwen2.5's YaRN), so the larger of the two is taken.
    """
    stated, scaling = config.get("max_position_embeddings"), config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(stated, bool) or not isinstance(stated, int) or stated <= 0:
        return 0
    if not isinstance(scaling, dict) or (scaling.get("rope_type") or scaling.get("type")) not in STRETCHED:
        return stated
    factor, before = scaling.get("factor"), scaling.get("original_max_position_embeddings") or stated
    if not (isinstance(factor, int | float) and isinstance(before, int | float) and 0 < factor <= MOST and 0 < before <= MOST):
        return stated
    return max(stated, int(before * factor))


def _block_shape(entry: Mapping[str, Any], heads: int) -> BlockShape:
    attention, ffn = entry["attention"], entry["ffn"]
    # `free` states its KV groups; `decilm` only says how many query heads share one.
    groups = attention.get("num_key_value_heads")
    if groups is None and not attention["no_op"]:
        groups = heads // attention["n_heads_in_group"]
    return BlockShape(
        ffn=0 if ffn["no_op"] else int(ffn["intermediate_size"]),
        kv_groups=0 if attention["no_op"] else int(groups),
    )


def _size(config: Mapping[str, Any], key: str, default: int | None = None, most: int = MOST) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise _bad(key, f"it is {shown(value)}, not a positive integer")
    if value > most:
        raise _bad(key, f"it is {shown(value)}, more than any model has")
    return value


def _bad(key: str, why: str) -> TrimlineError:
    return TrimlineError(f"config.json has an unusable {key}: {why}.", "Fetch the checkpoint again or correct its config.")
