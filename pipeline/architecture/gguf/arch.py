"""What is said of an architecture of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.architecture.families import Point

# The functions that an FFN may apply, by the names that a config has for the same values.
SILU = frozenset({"silu", "swish"})
GELU = frozenset({"gelu_pytorch_tanh", "gelu_new"})
SQUARED_RELU = frozenset({"relu2"})
XIELU = frozenset({"xielu"})

PLAIN = frozenset({"default", "linear", "yarn"})  # rotary embeddings that keys say
FACTORS = PLAIN | {"llama3"}  # and those whose frequencies are divided by a tensor of factors
INPUTS = frozenset({Point.ATTENTION_INPUT})
ATTENTION = INPUTS | {Point.HEADS}
EVERYWHERE = frozenset(Point)


@dataclass(frozen=True)
class GgufWindows:
    """Blocks that attend to a window.

    Attributes:
        always: the architecture takes every model to have such blocks.
        own_base: their rotary embedding has a base of its own; else that of the others.
        stretched: their rotary embedding is scaled as that of the others; else it never is.
        depth: only models of this many blocks have them; None where the keys decide.
    """

    always: bool = False
    own_base: bool = False
    stretched: bool = False
    depth: int | None = None


@dataclass(frozen=True)
class GgufExperts:
    """Routed experts in the place of an FFN.

    Attributes:
        normalised: the weights of the chosen are divided by their sum: always, never, or, where it is None, as a key says.
        scores: what the router's rows give is made of by a softmax over all experts, by a sigmoid, or by a softmax over the ``chosen``.
        told: a key says which.
        own_width: a key of its own says how wide each expert is; else that of the FFN does.
        shared: which key says how wide a shared expert is, by times an expert's width or by channels; empty where it has none.
        gated: a gate of every token weighs what the shared expert writes.
        dense_first: the first blocks may have a dense FFN, and a key says how many do.
        fixed: config keys and the only values that it computes with.
    """

    normalised: bool | None = True
    scores: Literal["softmax", "sigmoid", "chosen"] = "softmax"
    told: bool = False
    own_width: bool = True
    shared: Literal["", "count", "width"] = ""
    gated: bool = False
    dense_first: bool = False
    fixed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GgufArch:
    """An architecture of llama.cpp.

    Attributes:
        name: in a GGUF.
        activation: names of the one function that its FFN applies.
        neighbours: its rotary embedding turns channels 2i and 2i + 1 of a head together; else i and i + half.
        square: it takes heads times head_dim to be the hidden size.
        ungrouped: every query head has a key head of its own.
        epsilon: config key of the norms' epsilon; empty where the model has none, and it is 1e-5.
        layer_norm: the norms take the mean off, so the epsilon has another key.
        head: the output head is its own or the token table (``either``), its own, or the token table.
        biases: where projections may have biases.
        needs: where they must have them.
        keys: what the file says (after the architecture's name) to the config key that it is.
        insists: config keys of these that must not be null.
        rotary: kinds of rotary embedding.
        part: it can turn a part of each head.
        betas: it reads the ramp of YaRN from keys; else that is 32 and 1.
        windows: of blocks that attend to a window; None where it has none.
        unrotated: every so many blocks one has no rotary embedding; 0 where all have one.
        unlike: models of this many blocks divide scores by the root of hidden size / heads instead of head_dim.
        names: names of modules that gguf's own table lacks for this architecture.
        experts: that a router chooses from; None where it has none.
    """

    name: str
    activation: frozenset[str] = SILU
    neighbours: bool = False
    square: bool = False
    ungrouped: bool = False
    epsilon: str = "rms_norm_eps"
    layer_norm: bool = False
    head: Literal["either", "own", "table"] = "either"
    biases: frozenset[Point] = INPUTS
    needs: frozenset[Point] = frozenset()
    keys: Mapping[str, str] = field(default_factory=dict)
    insists: frozenset[str] = frozenset()
    rotary: frozenset[str] = PLAIN
    part: bool = False
    betas: bool = False
    windows: GgufWindows | None = None
    unrotated: int = 0
    unlike: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    experts: GgufExperts | None = None
