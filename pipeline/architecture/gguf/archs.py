"""What llama.cpp computes for each of its architectures, as data: a model whose config says anything else is refused.

Read in its source (``src/models`` and ``src/llama-model.cpp`` as shipped with llama-cpp-python 0.3.36); tests/servers runs every row.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.architecture.families import Point
from pipeline.architecture.gguf.arch import (
    ATTENTION,
    EVERYWHERE,
    FACTORS,
    GELU,
    INPUTS,
    SQUARED_RELU,
    XIELU,
    GgufArch,
    GgufExperts,
    GgufWindows,
)

LLAMA = GgufArch("llama", neighbours=True, biases=EVERYWHERE, rotary=FACTORS, experts=GgufExperts(own_width=False))
OLMO2 = GgufArch("olmo2", square=True, head="own", windows=GgufWindows())
GEMMA = GgufArch("gemma", activation=GELU, head="table", names={"pre_feedforward_layernorm": "ffn_norm"})
COMMAND_R = GgufArch(
    "command-r", neighbours=True, square=True, epsilon="layer_norm_eps", layer_norm=True, head="table", keys={"logit_scale": "logit_scale"}
)
ROWS = (
    LLAMA,
    replace(LLAMA, name="deci", experts=None),
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
GRANITE = next(row for row in ROWS if row.name == "granite")
MIXTURES = (
    GgufArch(
        "glm4moe",
        part=True,
        keys={"expert_weights_scale": "routed_scaling_factor"},
        experts=GgufExperts(normalised=None, scores="sigmoid", told=True, shared="count", dense_first=True),
    ),
    GgufArch(
        "gpt-oss",
        biases=ATTENTION,
        needs=frozenset({Point.HEADS}),
        head="own",
        windows=GgufWindows(always=True, stretched=True),
        experts=GgufExperts(scores="chosen", fixed={"swiglu_alpha": 1.702, "swiglu_limit": 7.0}),
    ),
    replace(
        GRANITE,
        name="granitemoe",
        biases=ATTENTION,
        names={"block_sparse_moe.router": "ffn_gate_inp"},
        experts=GgufExperts(own_width=False),
    ),
    GgufArch("hunyuan-moe", rotary=FACTORS, experts=GgufExperts(shared="width")),
    GgufArch("minimax-m2", head="own", part=True, experts=GgufExperts(scores="sigmoid", told=True)),
    GgufArch("olmoe", square=True, ungrouped=True, head="own", experts=GgufExperts(normalised=False, own_width=False)),
    GgufArch("qwen2moe", square=True, head="own", experts=GgufExperts(normalised=False, shared="width", gated=True)),
    GgufArch("qwen3moe", experts=GgufExperts()),
)
GGUF_ARCHS: dict[str, GgufArch] = {row.name: row for row in (*ROWS, *MIXTURES)}
