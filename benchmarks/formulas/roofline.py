"""The least time that a machine allows a model's shapes: operator by operator, the longer of moving and multiplying.

``time bound = Σ over operators of max(bytes / measured bandwidth, FLOPs / measured rate)``

Everything is counted from the geometry. An operator reads its inputs and weights once and writes its output once; a
weight that all tokens use is read once per call; attention is one fused operator that looks at no future position.
FLOPs are those of multiplications by matrices (a multiply-add is two): softmax, norms and activations cost their bytes.
Rates in bytes/s and FLOP/s, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.architecture.families import Axis, Norm, Sublayer
from pipeline.architecture.geometry import MATRIX, BlockShape, Geometry

FP32 = 4


@dataclass(frozen=True)
class Call:
    """One run of the graph.

    Attributes:
        tokens: new tokens per sequence; past: cached ones.
        logits_positions: per sequence, how many the graph computes logits for.
    """

    tokens: int
    past: int = 0
    batch: int = 1
    logits_positions: int = 1

    @property
    def rows(self) -> int:
        """Rows of the matrices that all projections see."""
        return self.tokens * self.batch

    @property
    def pairs(self) -> int:
        """(query, key) pairs that causal attention looks at."""
        return self.batch * (self.tokens * self.past + self.tokens * (self.tokens + 1) // 2)


@dataclass(frozen=True)
class Operator:
    """What one operator must move (bytes) and multiply (FLOPs)."""

    name: str
    bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Ceilings:
    """What this machine was measured to do: bytes/s read from memory, fp32 FLOP/s in a large matrix product."""

    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Widths:
    """Bytes per number, of activations and of weights (fewer than 4 where weights are quantised).

    Attributes:
        special: of the weights of single operators, by their names.
    """

    activation: float = FP32
    weight: float = FP32
    special: Mapping[str, float] = field(default_factory=dict)

    def of(self, operator: str) -> float:
        """Bytes per weight of one operator."""
        return self.special.get(operator, self.weight)

    def in_block(self, number: int) -> Widths:
        """The same, with the operators of one block under their names without its number."""
        own = {name.removeprefix(f"{number}."): width for name, width in self.special.items() if name.startswith(f"{number}.")}
        return replace(self, special=own)


def operators(geometry: Geometry, call: Call, widths: Widths | None = None) -> list[Operator]:
    """Every operator of one call, in order of execution."""
    widths = widths or Widths()
    found = list(_embedding(geometry, call, widths))
    for number, block in enumerate(geometry.blocks):
        found += [Operator(f"{number}.{op.name}", op.bytes, op.flops) for op in _block(geometry, block, call, widths.in_block(number))]
    found += list(_head(geometry, call, widths))
    return found


def time_bound(work: list[Operator], ceilings: Ceilings) -> float:
    """Seconds that the roofline allows at best."""
    return sum(max(op.bytes / ceilings.bandwidth, op.flops / ceilings.rate) for op in work)


def allowed_speedup(dense: list[Operator], pruned: list[Operator], ceilings: Ceilings) -> float:
    """What removing the units can gain on this machine, if both models ran at the roofline."""
    return time_bound(dense, ceilings) / time_bound(pruned, ceilings)


def flops(work: list[Operator]) -> float:
    """All of them."""
    return sum(op.flops for op in work)


def weight_bytes(geometry: Geometry, widths: Widths | None = None) -> float:
    """Weights read by any call: all but looked-up tables. A tied table is read, as the output head."""
    widths = widths or Widths()
    looked_up = geometry.hidden * (geometry.positions + (0 if geometry.tied else geometry.vocab))
    usual = (geometry.language_parameters() - looked_up) * widths.weight
    return usual + sum(_weights(geometry, name) * (width - widths.weight) for name, width in widths.special.items())


def _weights(geometry: Geometry, operator: str) -> int:
    number, _, name = operator.partition(".")
    if operator == geometry.family.head:
        return geometry.vocab * geometry.hidden
    return next(math.prod(shape) for linear, shape in geometry.linears(geometry.blocks[int(number)]) if linear.name == name)


def cache_bytes(geometry: Geometry, call: Call, widths: Widths | None = None) -> float:
    """Cached keys and values that a call reads, and the states of carried mixers."""
    return call.batch * geometry.cache_numbers(call.past) * (widths or Widths()).activation


def _unread(geometry: Geometry, call: Call, widths: Widths) -> float:
    """Bytes of experts that no token of a call chooses."""
    left = ((block.experts - experts_read(geometry, block, call.rows), block) for block in geometry.blocks)
    return sum(count * geometry.expert_parameters(block) for count, block in left) * widths.weight


def mbu(geometry: Geometry, call: Call, seconds: float, ceilings: Ceilings, widths: Widths | None = None) -> float:
    """(weight bytes + KV bytes read per step) / step time / measured memory bandwidth."""
    read = weight_bytes(geometry, widths) - _unread(geometry, call, widths or Widths())
    return (read + cache_bytes(geometry, call, widths)) / seconds / ceilings.bandwidth


def mfu(geometry: Geometry, call: Call, seconds: float, ceilings: Ceilings) -> float:
    """FLOPs of the step / step time / measured matrix-multiply rate."""
    return flops(operators(geometry, call)) / seconds / ceilings.rate


def experts_read(geometry: Geometry, block: BlockShape, rows: int) -> float:
    """How many experts of a block a call reads, on the average of tokens that choose alike and on their own."""
    return block.experts * (1 - (1 - geometry.routing.chosen / block.experts) ** rows) if block.experts else 0.0


def _routed(geometry: Geometry, block: BlockShape, call: Call, widths: Widths) -> Iterator[Operator]:
    """The router, and the experts that the tokens of a call choose: each is read once, and computes for those that chose it."""
    yield _linear("router", block.experts, geometry.hidden, call.rows, widths, bias=False)
    weights, chosen = geometry.expert_parameters(block), geometry.routing.chosen * call.rows
    moved = chosen * (2 * geometry.hidden + 3 * block.expert_width) * widths.activation
    yield Operator("experts", experts_read(geometry, block, call.rows) * weights * widths.weight + moved, 2.0 * chosen * weights)


def _embedding(geometry: Geometry, call: Call, widths: Widths) -> Iterator[Operator]:
    gathered = call.rows * geometry.hidden
    yield Operator("embedding", gathered * (widths.weight + widths.activation))
    if geometry.positions:
        yield Operator("positions", gathered * (widths.weight + 2 * widths.activation))


def _block(geometry: Geometry, block: BlockShape, call: Call, widths: Widths) -> Iterator[Operator]:
    for norm in geometry.family.norms:
        if block.holds(norm):
            yield _norm(norm.name, _norm_width(geometry, block, norm), call.rows, widths)
    for linear, (outputs, inputs) in geometry.linears(block):
        yield _linear(linear.name, outputs, inputs, call.rows, widths, bias=geometry.has_bias(linear))
    yield from _carried(geometry, block, call, widths)
    if block.units(Sublayer.ATTENTION):
        yield from _attention(geometry, block, call, widths)
    if block.has(Sublayer.ATTENTION):
        yield _elementwise("attention_residual", 3 * geometry.hidden, call, widths)
    if block.experts:
        yield from _routed(geometry, block, call, widths)
    if block.units(Sublayer.FFN):
        yield _elementwise("activation", (_ffn_inputs(geometry) + 1) * block.ffn, call, widths)
    if block.has(Sublayer.FFN):
        yield _elementwise("ffn_residual", 3 * geometry.hidden, call, widths)


def _carried(geometry: Geometry, block: BlockShape, call: Call, widths: Widths) -> Iterator[Operator]:
    """Of mixers that are carried: matrices, convolutions, and the state, which is read and written once per call and computed with per token."""
    for part, shape in geometry.carried(block):
        if len(shape) == MATRIX and part.trained:
            yield _linear(part.name, shape[0], shape[1], call.rows, widths, bias=False)
        elif len(shape) > MATRIX and part.trained:
            weights, passing = math.prod(shape), 2 * shape[0] * call.rows
            yield Operator(part.name, weights * widths.of(part.name) + passing * widths.activation, 2 * call.rows * weights)
    for cost in geometry.costs(block):
        state, recurrent, cached, attended = (
            sum(geometry.size(size, block) for size in sizes) for sizes in (cost.state, cost.recurrent, cost.cached, cost.attended)
        )
        if state:
            yield Operator("state", 2 * state * call.batch * widths.activation, cost.operations * recurrent * call.rows)
        if cached:
            seen = cached * call.batch * (call.past + 2 * call.tokens)  # what is new is written too
            yield Operator("carried_attention", seen * widths.activation, attended * call.pairs)


def _attention(geometry: Geometry, block: BlockShape, call: Call, widths: Widths) -> Iterator[Operator]:
    queries, keys = geometry.axis_size(Axis.QUERY, block), geometry.axis_size(Axis.KV, block)
    if not geometry.positions:
        yield _elementwise("rotary", 2 * (queries + keys), call, widths)
    yield _elementwise("cache_write", 2 * keys, call, widths)
    seen = 2 * keys * call.batch * (call.past + call.tokens)
    # q·k and p·v over the pairs that causality allows; queries in and result out, keys and values in once.
    yield Operator("attention", (2 * queries * call.rows + seen) * widths.activation, 4 * call.pairs * queries)


def _head(geometry: Geometry, call: Call, widths: Widths) -> Iterator[Operator]:
    for name in geometry.family.final_norms:
        yield _norm(name, geometry.hidden, call.rows, widths)
    yield _linear(geometry.family.head, geometry.vocab, geometry.hidden, call.batch * call.logits_positions, widths, bias=False)


def _linear(name: str, outputs: int, inputs: int, rows: int, widths: Widths, *, bias: bool) -> Operator:
    weights = outputs * inputs + (outputs if bias else 0)
    return Operator(name, weights * widths.of(name) + rows * (outputs + inputs) * widths.activation, 2 * rows * outputs * inputs)


def _norm(name: str, width: int, rows: int, widths: Widths) -> Operator:
    return Operator(name, 2 * rows * width * widths.activation)


def _elementwise(name: str, numbers: int, call: Call, widths: Widths) -> Operator:
    """``numbers`` read or written per token."""
    return Operator(name, numbers * call.rows * widths.activation)


def _norm_width(geometry: Geometry, block: BlockShape, norm: Norm) -> int:
    """Numbers that a norm touches per token: a norm over head_dim runs once per head of what it normalises."""
    if norm.axis is not Axis.HEAD:
        return geometry.axis_size(norm.axis, block)
    assert norm.of is not None, "a description says whose heads a norm is over"
    return geometry.axis_size(norm.of, block)


def _ffn_inputs(geometry: Geometry) -> int:
    """Matrices whose outputs meet in the activation: two where it is gated."""
    return sum(linear.rows.count(Axis.FFN) for linear in geometry.family.linears)
