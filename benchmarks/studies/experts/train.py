"""Trains a small mixture on one core, so that experts differ as trained ones do: ``python -m benchmarks.studies.experts.train TEXT OUT``.

Random weights say whether a cut is exact and nothing about which experts matter. This is a stock Qwen3-MoE of eight experts, two for each
token, with a byte-pair vocabulary made from the same text. The text is WikiText-2's validation part; its test part is never seen.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

SEED, VOCAB, WINDOW, BATCH = 0, 1024, 128, 16
PEAK, WARM_UP, DECAY = 3e-3, 0.05, 0.1  # learning rate; share of the time that it rises in; weight decay
BALANCE = 0.01  # of the auxiliary loss that keeps all experts in use, as in published mixtures


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer made from the text."""
    made = Tokenizer(BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<pad>", "<s>", "</s>"]
    made.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def untrained() -> Qwen3MoeForCausalLM:
    """Four blocks of eight experts, two for each token."""
    config = Qwen3MoeConfig(
        vocab_size=VOCAB,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        norm_topk_prob=True,
        router_aux_loss_coef=BALANCE,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen3MoeForCausalLM(config)


def rate_at(share: float) -> float:
    """The learning rate after a share of the time: up in a line, down in a cosine."""
    return PEAK * (share / WARM_UP if share < WARM_UP else 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))))


def train(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, seconds: float) -> int:
    """Trains for so many seconds of the processor; returns how many tokens it saw. Which windows come depends on the seed alone, how many on the machine."""
    draw = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=DECAY)
    began, seen, step = time.process_time(), 0, 0
    while (share := (time.process_time() - began) / seconds) < 1:
        starts = torch.randint(len(tokens) - WINDOW - 1, (BATCH,), generator=draw)
        windows = torch.stack([tokens[start : start + WINDOW + 1] for start in starts])
        output = model(windows[:, :-1], output_router_logits=True, use_cache=False)
        loss = cross_entropy(output.logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + BALANCE * output.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(share)
        optimizer.step()
        seen, step = seen + windows[:, 1:].numel(), step + 1
        if step % 100 == 0:
            print(f"{share:5.1%}  {seen:>10,} tokens  loss {loss.item():.3f}", flush=True)
    return seen


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="what to train on")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=4.0, help="of one core")
    given = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    text = given.text.read_text(encoding="utf-8")
    tokenizer = tokenizer_of(text)
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    model = untrained()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokens):,} tokens of text", flush=True)
    seen = train(model, tokens, 60 * given.minutes)
    model.eval().save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    print(f"saw {seen:,} tokens; wrote {given.out}")


if __name__ == "__main__":
    main()
