"""Nemotron-H without experts: one sublayer per block, Mamba-2, attention or an FFN of two matrices, behind one norm."""

from pipeline.architecture.families.family import Axis, Family, Linear, Norm
from pipeline.architecture.families.kinds import ATTENTION, DENSE, NONE, Kinds, Listed
from pipeline.architecture.families.mixers import MAMBA, mamba2, mamba2_cost

INNER, GROUPS, STATE, KERNEL = "mamba_num_heads * mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"
KEY, PATTERN, H = "layers_block_type", "hybrid_override_pattern", Axis.RESIDUAL
MIXERS = {"mamba": MAMBA, "linear_attention": MAMBA, "attention": ATTENTION, "full_attention": ATTENTION, "mlp": NONE}
FFNS = dict.fromkeys(MIXERS, NONE) | {"mlp": DENSE}

NEMOTRON_H = Family(
    model_type="nemotron_h",
    class_prefix="NemotronH",
    kinds=Kinds(
        mixers=Listed(KEY, MIXERS, Listed(PATTERN, {"M": MAMBA, "*": ATTENTION, "-": NONE})),
        ffns=Listed(KEY, FFNS, Listed(PATTERN, {"M": NONE, "*": NONE, "-": DENSE})),
        costs={MAMBA: mamba2_cost(INNER, GROUPS, STATE, KERNEL)},
    ),
    linears=(
        *(Linear(f"mixer.{name}_proj", (axis,), H) for name, axis in (("q", Axis.QUERY), ("k", Axis.KV), ("v", Axis.KV))),
        Linear("mixer.o_proj", (H,), Axis.QUERY),
        Linear("mixer.up_proj", (Axis.FFN,), H, bias="mlp_bias"),
        Linear("mixer.down_proj", (H,), Axis.FFN, bias="mlp_bias"),
    ),
    norms=(Norm("norm", H, None),),
    carried=mamba2("mixer", MAMBA, INNER, "mamba_num_heads", GROUPS, STATE, KERNEL, biases=("use_conv_bias", "use_bias", "use_bias")),
    embeddings=("model.embeddings",),
    final_norms=("model.norm_f",),
    attention="mixer",
    ffn="mixer",
    on_disk="backbone.",
    activation_key="mlp_hidden_act",
    passed_over=(r"(model\.)?mtp\.", "head that predicts further tokens"),
    old_keys={"mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias"},
    defaults={"use_conv_bias": True, "head_dim": 128},
    fixed_stream="the norms in its Mamba mixers share their epsilon",
)
