"""Falcon-H1: in every block Mamba-2 and attention beside each other, behind one norm; a multiplier on every path."""

from pipeline.architecture.families.family import Axis, Family, Linear, Sublayer
from pipeline.architecture.families.kinds import ATTENTION, Kinds
from pipeline.architecture.families.mixers import mamba2, mamba2_cost
from pipeline.architecture.families.parts import attention, stream_norms

INNER, GROUPS, STATE, KERNEL = "mamba_d_ssm", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"

FALCON_H1 = Family(
    model_type="falcon_h1",
    class_prefix="FalconH1",
    kinds=Kinds(costs={ATTENTION: mamba2_cost(INNER, GROUPS, STATE, KERNEL)}),
    linears=(
        *attention("attention_bias"),
        Linear("feed_forward.gate_proj", (Axis.FFN,), Axis.RESIDUAL, bias="mlp_bias"),
        Linear("feed_forward.up_proj", (Axis.FFN,), Axis.RESIDUAL, bias="mlp_bias"),
        Linear("feed_forward.down_proj", (Axis.RESIDUAL,), Axis.FFN, bias="mlp_bias"),
    ),
    norms=stream_norms(attention=("input_layernorm",), ffn=("pre_ff_layernorm",)),
    carried=mamba2(
        "mamba",
        ATTENTION,
        INNER,
        "mamba_n_heads",
        GROUPS,
        STATE,
        KERNEL,
        biases=("mamba_conv_bias", "mamba_proj_bias", "projectors_bias"),
        norm="mamba_rms_norm",
    ),
    ffn="feed_forward",
    final_norms=("model.final_layernorm",),
    defaults={"mamba_conv_bias": True, "mamba_n_groups": 1, "mamba_d_conv": 4},
    multiplier_keys={Sublayer.ATTENTION: "attention_out_multiplier", Sublayer.FFN: "mlp_multipliers.1"},
    gives_tuple=True,
    body_fills=True,
    fixed_stream="the norms in its Mamba mixers share their epsilon, and multipliers count the channels",
)
