"""Mixers that are carried as they are, under the names that transformers gives them: their tensors, and what they cost beside these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.architecture.families.family import Axis, Carried, Sublayer
from pipeline.architecture.families.kinds import KindCost, Size
from pipeline.architecture.families.parts import routed

MIXER = Sublayer.ATTENTION
DELTA, MAMBA = "linear_attention", "mamba"
MIXTURE = "mixture"  # of FFN: routed experts beside dense FFNs in other blocks, a shared expert that is carried


def projection(name: str, rows: Size, columns: Size, kind: str, adds: bool = False, bias: str = "") -> tuple[Carried, ...]:
    """A projection of a carried mixer; ``bias`` is the config key that decides, or empty for none."""
    weight = Carried(f"{name}.weight", (rows, columns), MIXER, kinds=(kind,), adds=adds)
    return (weight, Carried(f"{name}.bias", (rows,), MIXER, kinds=(kind,), adds=adds, when=bias)) if bias else (weight,)


def convolution(name: str, channels: Size, kernel: Size, kind: str, bias: str = "") -> tuple[Carried, ...]:
    """A causal convolution of every channel by itself."""
    weight = Carried(f"{name}.weight", (channels, 1, kernel), MIXER, kinds=(kind,))
    return (weight, Carried(f"{name}.bias", (channels,), MIXER, kinds=(kind,), when=bias)) if bias else (weight,)


def vectors(kind: str, **sizes: Size) -> Iterator[Carried]:
    """Parameters of one axis; ``__`` in a name stands for a dot."""
    return (Carried(name.replace("__", "."), (size,), MIXER, kinds=(kind,)) for name, size in sizes.items())


_VALUES = "linear_num_value_heads * linear_value_head_dim"
_MIXED = f"2 * linear_num_key_heads * linear_key_head_dim + {_VALUES}"
_DELTA_STATE = f"{_VALUES} * linear_key_head_dim"
# Of every number of the state (heads, key channels, value channels): it decays (1), is read by the key (2), gets an outer product (2),
# and is read by the query (2).
DELTA_COST = KindCost((f"linear_conv_kernel_dim * {_MIXED.replace('+', '+ linear_conv_kernel_dim *')}", _DELTA_STATE), (_DELTA_STATE,), 7)


def delta_net(*into: tuple[str, Size]) -> tuple[Carried, ...]:
    """A gated delta rule (arXiv 2412.06464), whose projections out of the stream are ``into``: name and rows.

    With no ``into`` they are four, as in Qwen3.5: queries, keys and values in one, gates, and two numbers per head.
    """
    heads = "linear_num_value_heads"
    apart = (("in_proj_qkv", _MIXED), ("in_proj_z", _VALUES), ("in_proj_b", heads), ("in_proj_a", heads))
    return (
        *(part for name, rows in into or apart for part in projection(f"linear_attn.{name}", rows, Axis.RESIDUAL, DELTA)),
        *convolution("linear_attn.conv1d", _MIXED, "linear_conv_kernel_dim", DELTA),
        *vectors(DELTA, linear_attn__A_log=heads, linear_attn__dt_bias=heads, linear_attn__norm__weight="linear_value_head_dim"),
        *projection("linear_attn.out_proj", Axis.RESIDUAL, _VALUES, DELTA, adds=True),
    )


# Of Qwen3-Next: queries, keys, values and gates in one; the two numbers per head in another.
FUSED_DELTA = (("in_proj_qkvz", f"{_MIXED} + {_VALUES}"), ("in_proj_ba", "2 * linear_num_value_heads"))


def mamba2(
    path: str, kind: str, inner: str, heads: str, groups: str, state: str, kernel: str, *, biases: tuple[str, str, str], norm: str = ""
) -> tuple[Carried, ...]:
    """A Mamba-2 mixer (arXiv 2405.21060).

    Args:
        path: of its module inside the block.
        kind: of mixer, that it is or stands beside.
        inner, heads, groups, state, kernel: sizes: its channels, heads, groups of B and C, numbers of the state per channel, inputs of the convolution.
        biases: config keys that decide: of the convolution, of the projection into it and out of it.
        norm: config key that says whether it has one; empty where it always has.
    """
    mixed = f"{inner} + 2 * {groups} * {state}"
    of_conv, into, out = biases
    return (
        *projection(f"{path}.in_proj", f"{inner} + {mixed} + {heads}", Axis.RESIDUAL, kind, bias=into),
        *convolution(f"{path}.conv1d", mixed, kernel, kind, bias=of_conv),
        *(Carried(f"{path}.{name}", (heads,), MIXER, kinds=(kind,)) for name in ("A_log", "D", "dt_bias")),
        Carried(f"{path}.norm.weight", (inner,), MIXER, kinds=(kind,), when=norm),
        *projection(f"{path}.out_proj", Axis.RESIDUAL, inner, kind, adds=True, bias=out),
    )


def mamba2_cost(inner: str, groups: str, state: str, kernel: str) -> KindCost:
    """Of every number of the state: it decays (1), gets an outer product (2), and is read by C (2)."""
    held = f"{inner} * {state}"
    return KindCost((f"{kernel} * {inner} + 2 * {kernel} * {groups} * {state}", held), (held,), 5)


def in_mixtures(*parts: Carried) -> tuple[Carried, ...]:
    """Parts that only blocks with experts have, where others have dense FFNs."""
    return tuple(replace(part, kinds=(MIXTURE,)) for part in parts)


def shared_in_one(count: str = "n_shared_experts") -> tuple[Carried, ...]:
    """Shared experts beside routed ones, as one FFN as wide as all of them; ``count`` is the config key of how many they are."""
    width = f"{count} * moe_intermediate_size"
    shapes = (("gate_proj", width, Axis.RESIDUAL), ("up_proj", width, Axis.RESIDUAL), ("down_proj", Axis.RESIDUAL, width))
    return in_mixtures(
        *(
            Carried(f"mlp.shared_experts.{name}.weight", (rows, columns), Sublayer.FFN, adds=rows is Axis.RESIDUAL)
            for name, rows, columns in shapes
        )
    )


def corrected_mixture() -> tuple[Carried, ...]:
    """DeepSeek-V3's experts (arXiv 2412.19437, section 2.1.2) where other blocks have dense FFNs: routed ones, a correction, and shared ones in one."""
    correction = Carried("mlp.gate.e_score_correction_bias", (Axis.EXPERT,), Sublayer.FFN, trained=False)
    return (*in_mixtures(*routed(), correction), *shared_in_one())


MLA = "latent_attention"
_PER_HEAD = "num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim"
_VALUE = "num_attention_heads * v_head_dim"
# As transformers caches it: the latents of a token and its rotated channels. Scores and sums run over heads that are made of these.
MLA_COST = KindCost(
    cached=("kv_lora_rank + qk_rope_head_dim",),
    attended=(f"2 * {_PER_HEAD.replace('+ ', '+ 2 * ')} + 2 * {_VALUE}",),
)


def latent_attention() -> tuple[Carried, ...]:
    """Multi-head latent attention (arXiv 2405.04434, section 2.1): pairs of low rank with norms between; queries with or without such a pair."""
    into, bias, low = Axis.RESIDUAL, "attention_bias", "q_lora_rank"

    def part(name: str, *shape: Size, when: str = "", adds: bool = False) -> Carried:
        return Carried(f"self_attn.{name}", shape, MIXER, kinds=(MLA,), when=when, adds=adds)

    return (
        part("q_proj.weight", _PER_HEAD, into, when=f"not {low}"),
        part("q_a_proj.weight", low, into, when=low),
        part("q_a_proj.bias", low, when=f"{low} and {bias}"),
        part("q_a_layernorm.weight", low, when=low),
        part("q_b_proj.weight", _PER_HEAD, low, when=low),
        part("kv_a_proj_with_mqa.weight", "kv_lora_rank + qk_rope_head_dim", into),
        part("kv_a_proj_with_mqa.bias", "kv_lora_rank + qk_rope_head_dim", when=bias),
        part("kv_a_layernorm.weight", "kv_lora_rank"),
        part("kv_b_proj.weight", "num_attention_heads * qk_nope_head_dim + num_attention_heads * v_head_dim", "kv_lora_rank"),
        part("o_proj.weight", into, _VALUE, adds=True),
        part("o_proj.bias", into, when=bias, adds=True),
    )
