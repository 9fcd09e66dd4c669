"""StarCoder2: biases everywhere, LayerNorm, an FFN of two matrices."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, before, plain

STARCODER2 = Family(
    model_type="starcoder2",
    class_prefix="Starcoder2",
    linears=(*attention("use_bias"), *plain("c_fc", "c_proj", "use_bias")),
    norms=before(bias=True),
    norm_bias=True,
    defaults={"use_bias": True, "tie_word_embeddings": True},
    gguf_arch="starcoder2",
)
