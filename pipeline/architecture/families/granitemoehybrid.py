"""Granite 4 without experts: Mamba-2 in most blocks, attention in some; an FFN whose gate and up are one projection; multipliers."""

from pipeline.architecture.families.family import Axis, Family, Linear
from pipeline.architecture.families.kinds import ATTENTION, Kinds, Listed
from pipeline.architecture.families.mixers import MAMBA, mamba2, mamba2_cost
from pipeline.architecture.families.parts import attention, before

INNER, GROUPS, STATE, KERNEL = "mamba_expand * hidden_size", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"
NAMED = {"mamba": MAMBA, "linear_attention": MAMBA, "attention": ATTENTION, "full_attention": ATTENTION}

GRANITEMOEHYBRID = Family(
    model_type="granitemoehybrid",
    class_prefix="GraniteMoeHybrid",
    kinds=Kinds(mixers=Listed("layer_types", NAMED), costs={MAMBA: mamba2_cost(INNER, GROUPS, STATE, KERNEL)}),
    linears=(
        *attention("attention_bias"),
        Linear("shared_mlp.input_linear", (Axis.FFN, Axis.FFN), Axis.RESIDUAL),
        Linear("shared_mlp.output_linear", (Axis.RESIDUAL,), Axis.FFN),
    ),
    norms=before(),
    carried=mamba2(
        "mamba",
        MAMBA,
        INNER,
        "mamba_n_heads",
        GROUPS,
        STATE,
        KERNEL,
        biases=("mamba_conv_bias", "mamba_proj_bias", "mamba_proj_bias"),
    ),
    ffn="shared_mlp",
    ffn_key="shared_intermediate_size",
    old_keys={"layers_block_type": "layer_types"},
    defaults={"num_local_experts": 8, "mamba_conv_bias": True, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_conv": 4},
    requires={"num_local_experts": 0},
    multiplier_key="residual_multiplier",
    fixed_stream="the norms in its Mamba mixers share their epsilon",
)
