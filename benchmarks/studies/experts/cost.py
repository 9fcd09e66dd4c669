"""What REAP's pass costs beside a plain forward through transformers' own experts: ``python -m benchmarks.studies.experts.cost``.

A stock Qwen3-MoE with random weights, one thread: both read the same windows through the same blocks, in turn. The forward is what the
model's body does by itself; the sweep also sees every expert's output for every token, and asks norms of it. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from benchmarks.machine.environment import processor
from pipeline.architecture.families import family_named
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.sweep import sweep
from pipeline.common.events import Events
from pipeline.live.blocks import batches_of

SEED, VOCAB = 1, 1024


def mixture(blocks: int, hidden: int, experts: int, width: int, chosen: int) -> Qwen3MoeForCausalLM:
    """Of random weights."""
    config = Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=width,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    return Qwen3MoeForCausalLM(config).eval()


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor, all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("blocks", 4), ("hidden", 512), ("experts", 32), ("width", 256), ("chosen", 4), ("windows", 16), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = mixture(given.blocks, given.hidden, given.experts, given.width, given.chosen)
    family = family_named("qwen3_moe")
    windows = torch.randint(VOCAB, (given.windows, 512), generator=torch.Generator().manual_seed(SEED))
    body = model.get_submodule("model")

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches_of(windows):
            body(input_ids=batch, use_cache=False)

    def reap() -> None:
        for _ in sweep(model, family, windows, Needs(routed=True), Events()):
            pass

    forward()  # the first of each is slower
    reap()
    pairs = [(seconds(forward), seconds(reap)) for _ in range(given.rounds)]
    ratios = sorted(swept / plain for plain, swept in pairs)
    print(f"{processor()}, one thread; {windows.numel():,} tokens, experts by {model.config._experts_implementation}")
    print(f"plain forward {median(plain for plain, _ in pairs):.2f} CPU s, REAP's pass {median(swept for _, swept in pairs):.2f} CPU s")
    print(f"ratio {median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f} in {given.rounds} rounds)")


if __name__ == "__main__":
    main()
