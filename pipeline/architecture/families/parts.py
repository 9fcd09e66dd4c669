"""Projections and norms that many architectures share, under the names that transformers gives them."""

from __future__ import annotations

from pipeline.architecture.families.family import Axis, Carried, Linear, Mixture, Norm, Sublayer

Bias = bool | str
Stored = dict[str, tuple[str, ...]]  # of ``Family.stored``


def attention(bias: Bias = False, output_bias: Bias | None = None, output: str = "o_proj") -> tuple[Linear, ...]:
    """q, k, v and the output projection, apart; ``output_bias`` None is as ``bias``."""
    return (
        Linear("self_attn.q_proj", (Axis.QUERY,), Axis.RESIDUAL, bias=bias),
        Linear("self_attn.k_proj", (Axis.KV,), Axis.RESIDUAL, bias=bias),
        Linear("self_attn.v_proj", (Axis.KV,), Axis.RESIDUAL, bias=bias),
        Linear(f"self_attn.{output}", (Axis.RESIDUAL,), Axis.QUERY, bias=bias if output_bias is None else output_bias),
    )


def gated_attention(bias: Bias = False) -> tuple[Linear, ...]:
    """q, k, v and the output projection, apart, where q holds a gate for every channel of a head behind its channels."""
    return (Linear("self_attn.q_proj", (Axis.GATED_QUERY,), Axis.RESIDUAL, bias=bias), *attention(bias)[1:])


def gated(bias: Bias = False, module: str = "mlp") -> tuple[Linear, ...]:
    """An FFN of gate, up and down."""
    return (
        Linear(f"{module}.gate_proj", (Axis.FFN,), Axis.RESIDUAL, bias=bias),
        Linear(f"{module}.up_proj", (Axis.FFN,), Axis.RESIDUAL, bias=bias),
        Linear(f"{module}.down_proj", (Axis.RESIDUAL,), Axis.FFN, bias=bias),
    )


def gate_and_up_in_one() -> tuple[Linear, ...]:
    """An FFN whose gate and up are one projection, one after the other."""
    return Linear("mlp.gate_up_proj", (Axis.FFN, Axis.FFN), Axis.RESIDUAL), Linear("mlp.down_proj", (Axis.RESIDUAL,), Axis.FFN)


def plain(up: str, down: str, bias: Bias = False) -> tuple[Linear, ...]:
    """An FFN of two matrices."""
    return Linear(f"mlp.{up}", (Axis.FFN,), Axis.RESIDUAL, bias=bias), Linear(f"mlp.{down}", (Axis.RESIDUAL,), Axis.FFN, bias=bias)


def stream_norms(
    *, attention: tuple[str, ...] = (), ffn: tuple[str, ...] = (), bias: bool = False, behind: bool = False
) -> tuple[Norm, ...]:
    """Norms over the residual stream, before or behind a sublayer: they go with it."""
    of_sublayer = ((Sublayer.ATTENTION, attention), (Sublayer.FFN, ffn))
    return tuple(Norm(name, Axis.RESIDUAL, sublayer, bias=bias, behind=behind) for sublayer, names in of_sublayer for name in names)


def behind(attention: str, ffn: str) -> tuple[Norm, ...]:
    """Two norms over the residual stream, one behind each sublayer."""
    return stream_norms(attention=(attention,), ffn=(ffn,), behind=True)


def before(bias: bool = False) -> tuple[Norm, ...]:
    """Llama's two, one before each sublayer."""
    return stream_norms(attention=("input_layernorm",), ffn=("post_attention_layernorm",), bias=bias)


def query_key_norms(
    query: str = "q_norm", key: str = "k_norm", axes: tuple[Axis, Axis] = (Axis.HEAD, Axis.HEAD), bias: bool = False
) -> tuple[Norm, ...]:
    """Norms of queries and keys, over each head by default."""
    parts = zip((query, key), axes, (Axis.QUERY, Axis.KV), strict=True)
    return tuple(Norm(f"self_attn.{name}", axis, Sublayer.ATTENTION, bias=bias, of=of) for name, axis, of in parts)


NO_SHARED_EXPERT = "all of its FFN is experts"
OF_ALL_EXPERTS = "its shared expert has the width of its routed ones"


def routed(module: str = "mlp", router: str = "gate.weight") -> tuple[Carried, ...]:
    """A router and stacked experts of gate, up and down, as transformers has them in memory."""
    return (
        Carried(f"{module}.{router}", (Axis.EXPERT, Axis.RESIDUAL), Sublayer.FFN),
        Carried(f"{module}.experts.gate_up_proj", (Axis.EXPERT, Axis.EXPERT_PAIR, Axis.RESIDUAL), Sublayer.FFN),
        Carried(f"{module}.experts.down_proj", (Axis.EXPERT, Axis.RESIDUAL, Axis.EXPERT_CHANNEL), Sublayer.FFN, adds=True),
    )


def one_by_one(memory: str = "mlp", disk: str = "mlp", names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Stored:
    """Experts that are stacked in memory and stand one by one in files."""
    gate, up, down = (f"{disk}.experts.{{}}.{name}.weight" for name in names)
    return {f"{memory}.experts.gate_up_proj": (gate, up), f"{memory}.experts.down_proj": (down,)}


def deepseek_experts(correction: str) -> Mixture:
    """Experts that are chosen in groups: of each group the two best say how good it is."""
    return Mixture("mlp.experts", "mlp.gate", ("num_local_experts", "n_routed_experts"), correction=correction, groups_key="n_group")
