"""NanoChat: norms without weights, also of queries and keys; an FFN of two matrices and squared ReLU; capped logits."""

from pipeline.architecture.families.family import Family
from pipeline.architecture.families.parts import attention, plain

NANOCHAT = Family(
    model_type="nanochat",
    class_prefix="NanoChat",
    linears=(*attention("attention_bias"), *plain("fc1", "fc2")),
    norms=(),
    final_norms=(),
    fixed_stream="its norms have no weights",
)
