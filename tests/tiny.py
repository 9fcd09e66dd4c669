"""Tiny random models of every family, for tests: built in a temporary folder, seeded, no network.

Between them they have what breaks naive cutting: grouped-query attention, tied and untied heads, biases, q/k norms,
fused projections (Phi-3), and heads × head_dim unlike the hidden size (Qwen3). Weights, norms and biases are all
random, so that a unit that is cut wrongly changes the logits.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

TINY_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "phi3")
VOCAB = 128
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = _COMMON | {"head_dim": 16, "intermediate_size": 96, "num_key_value_heads": 2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GATED | {"tie_word_embeddings": True},
    "mistral": _GATED | {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": _GATED | {"tie_word_embeddings": True},
    "qwen3": _GATED | {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 4},
    "phi3": _GATED | {"tie_word_embeddings": False, "original_max_position_embeddings": 256},
    "opt": _COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
}


def tiny_model(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Writes a random fp32 model of ``family`` and a character-level tokenizer into ``folder`` and returns it.

    ``overrides`` replace config keys (``num_hidden_layers=6``, ``attention_bias=True``, ``intermediate_size=256``).
    """
    config = AutoConfig.for_model(family, **(_CONFIGS[family] | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, ids below 104; byte-level, as transformers insists on for Qwen2."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = (*SPECIAL, *(bytes_.pre_tokenize_str(letter)[0][0] for letter in sorted(string.printable)))
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = bytes_
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )


def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:  # norms and biases: random too, around the value they already have
                parameter.add_(0.2 * noise)
