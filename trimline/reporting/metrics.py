"""What each figure means. Names differ between tools, so the formula is printed beside every name."""

from __future__ import annotations

PARAMETERS = "every number in the checkpoint; an output head tied to the token table counts once"
DECODER_PARAMETERS = "weights of the linear projections inside the blocks; no biases, norms, embeddings or output head"
ACTIVE_PARAMETERS = "of these, the weights that one token is multiplied with: its chosen experts, not all"
FLOPS = "2 × decoder linear parameters (of a mixture the active ones) + 4 × context × query channels, per token that sees {context} tokens; output head not counted"
CHECKPOINT = "bytes of the safetensors files"
ONNX = "bytes of the ONNX graph and its weights"
PERPLEXITY = "exp(mean negative log-likelihood per predicted token); ± is one standard error over windows"
LOSS = "mean over the steps since the point before; of the text: cross-entropy in nats per token; of distillation: KL divergence"
PEAK_MEMORY = "largest resident set of the process that ran the model; weights read in place count"
COLD_START = "load of the model and first request, before any warm-up"
LATENCY = (
    "median over the timed rounds; prefill: one pass over the prompt with an empty cache, no tokenising and no queue; "
    "decode: (time of the request − prefill) / (output tokens − 1)"
)
TOKENS = "batch × new tokens per call / median latency"
SPEEDUP = (
    "of every opening of the models the median over its rounds of (time of dense / time of pruned in the same round), of these the "
    "geometric mean, which need not be the quotient of the two medians; brackets: 95 % confidence interval, from openings"
)
CONTROL = "the same ratio for dense against itself; a timing counts where this lies within 1 ± 0.02"
ALLOWED = (
    "speed-up of the sum over operators of max(bytes / measured bandwidth, FLOPs / measured rate), "
    "output head, attention and KV cache included"
)
REALISED = "measured speed-up / speed-up that the roofline allows"
ENQUEUE = "the processor's time to hand one call to the GPU; median over the timed rounds, of a decode round the mean over its steps"
H2D = "copying token ids to the GPU, between two CUDA events; masks and positions are made there"
COMPUTE = "the engine itself on the GPU, between two CUDA events"
D2H = "copying the logits of the last position to main memory, between two CUDA events"
HOST_LATENCY = "H2D + GPU compute + D2H, as trtexec has it"
ROUNDS = "timed rounds per model, warm-up excluded"
FFN_CHANNELS = "intermediate channels removed / all intermediate channels of all blocks"
KV_GROUPS = "key/value heads (each with the query heads that read it) removed / all of them"
RESIDUAL_CHANNELS = "channels of the residual stream removed / its width"
EXPERTS = "routed experts removed / all of them, in all blocks"
BLOCKS = "blocks with neither attention nor FFN left / all blocks"
OVERLAP = "share of the evaluation text, by long lines or sentences, that also stands in the calibration text"
