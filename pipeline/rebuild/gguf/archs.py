"""What llama.cpp computes for each of its architectures, as data: a model whose config says anything else is refused.

Read in its source (``src/models`` and ``src/llama-model.cpp`` as shipped with llama-cpp-python 0.3.36); tests/servers runs every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
class GgufArch:
    """An architecture of llama.cpp.

    Attributes:
        name: in a GGUF.
        activation: names of the one function that its FFN applies.
        neighbours: its rotary embedding turns channels 2i and 2i + 1 of a head together; else i and i + half.
        square: it takes heads times head_dim to be the hidden size.
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
    """

    name: str
    activation: frozenset[str] = SILU
    neighbours: bool = False
    square: bool = False
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


LLAMA = GgufArch("llama", neighbours=True, biases=EVERYWHERE, rotary=FACTORS)
OLMO2 = GgufArch("olmo2", square=True, head="own", windows=GgufWindows())
GEMMA = GgufArch("gemma", activation=GELU, head="table", names={"pre_feedforward_layernorm": "ffn_norm"})
COMMAND_R = GgufArch(
    "command-r", neighbours=True, square=True, epsilon="layer_norm_eps", layer_norm=True, head="table", keys={"logit_scale": "logit_scale"}
)
ROWS = (
    LLAMA,
    replace(LLAMA, name="deci"),
    GgufArch("apertus", activation=XIELU, head="own", biases=ATTENTION, rotary=FACTORS),
    GgufArch("arcee", activation=SQUARED_RELU, neighbours=True, rotary=FACTORS),
    GgufArch("chatglm", neighbours=True, square=True, part=True),
    COMMAND_R,
    replace(COMMAND_R, name="cohere2", windows=GgufWindows(always=True, stretched=True)),
    GgufArch("ernie4_5", neighbours=True, biases=ATTENTION),
    GgufArch("exaone4", square=True, rotary=FACTORS, windows=GgufWindows(always=True, stretched=True, depth=64)),
    GEMMA,
    replace(
        GEMMA,
        name="gemma2",
        keys={"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
        insists=frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
        windows=GgufWindows(always=True, stretched=True),
        unlike=46,
        names={},
    ),
    GgufArch(
        "gemma3",
        activation=GELU,
        keys={"final_logit_softcapping": "final_logit_softcapping"},
        windows=GgufWindows(own_base=True),
        unlike=62,
    ),
    GgufArch("glm4", neighbours=True, part=True),
    GgufArch(
        "granite",
        neighbours=True,
        biases=EVERYWHERE,
        rotary=FACTORS,
        keys={
            "logit_scale": "logits_scaling",
            "residual_scale": "residual_multiplier",
            "embedding_scale": "embedding_multiplier",
            "attention.scale": "attention_multiplier",
        },
    ),
    GgufArch("hunyuan-dense", rotary=FACTORS),
    GgufArch(
        "jais2",
        activation=SQUARED_RELU,
        epsilon="layer_norm_eps",
        layer_norm=True,
        biases=EVERYWHERE,
        needs=EVERYWHERE - INPUTS,
    ),
    GgufArch(
        "mistral3",
        neighbours=True,
        rotary=FACTORS,
        betas=True,
        biases=EVERYWHERE,
        keys={"attention.temperature_scale": "llama_4_scaling_beta"},
    ),
    GgufArch(
        "nemotron",
        activation=SQUARED_RELU,
        square=True,
        epsilon="norm_eps",
        layer_norm=True,
        head="own",
        biases=EVERYWHERE,
        part=True,
    ),
    GgufArch("olmo", neighbours=True, square=True, epsilon="", layer_norm=True, keys={"attention.clamp_kqv": "clip_qkv"}),
    OLMO2,
    GgufArch(
        "phi2",
        activation=GELU,
        square=True,
        epsilon="layer_norm_eps",
        layer_norm=True,
        head="own",
        biases=EVERYWHERE,
        needs=EVERYWHERE,
        part=True,
    ),
    GgufArch("phi3", square=True),
    GgufArch("qwen2", square=True),
    GgufArch("qwen3"),
    GgufArch("seed_oss"),
    GgufArch("smollm3", neighbours=True, unrotated=4),
    GgufArch("stablelm", square=True, epsilon="layer_norm_eps", layer_norm=True, head="own", part=True),
    GgufArch(
        "starcoder2",
        activation=GELU,
        square=True,
        epsilon="norm_epsilon",
        layer_norm=True,
        biases=EVERYWHERE,
        needs=EVERYWHERE - INPUTS,
    ),
)
GGUF_ARCHS: dict[str, GgufArch] = {row.name: row for row in ROWS}
