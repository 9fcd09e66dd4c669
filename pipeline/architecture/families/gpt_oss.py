"""gpt-oss: experts with biases, transposed, gate and up interleaved; a sink per head; a window in every other block."""

from pipeline.architecture.families.family import Axis, Carried, Family, Mixture, Sublayer
from pipeline.architecture.families.parts import NO_SHARED_EXPERT, attention, before

FFN = Sublayer.FFN
GPT_OSS = Family(
    model_type="gpt_oss",
    class_prefix="GptOss",
    linears=attention("attention_bias"),
    norms=before(),
    carried=(
        Carried("self_attn.sinks", (Axis.HEADS,), Sublayer.ATTENTION),
        Carried("mlp.router.weight", (Axis.EXPERT, Axis.RESIDUAL), FFN),
        Carried("mlp.router.bias", (Axis.EXPERT,), FFN),
        Carried("mlp.experts.gate_up_proj", (Axis.EXPERT, Axis.RESIDUAL, Axis.EXPERT_PAIR), FFN),
        Carried("mlp.experts.gate_up_proj_bias", (Axis.EXPERT, Axis.EXPERT_PAIR), FFN),
        Carried("mlp.experts.down_proj", (Axis.EXPERT, Axis.EXPERT_CHANNEL, Axis.RESIDUAL), FFN, adds=True),
        Carried("mlp.experts.down_proj_bias", (Axis.EXPERT, Axis.RESIDUAL), FFN, adds=True),
    ),
    ffn_key=None,
    fixed_ffn=NO_SHARED_EXPERT,
    fixed_stream="channels of the stream that experts read are not cut yet",
    defaults={"attention_bias": True},
    mixture=Mixture("mlp.experts", "mlp.router", ("num_experts", "num_local_experts"), width_key="intermediate_size"),
    gguf_arch="gpt-oss",
)
