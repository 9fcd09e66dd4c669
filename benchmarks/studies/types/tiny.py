"""Tiny random models of every family, for the table of types and for tests: built in a folder, seeded, no network.

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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

TINY_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "phi3")  # that between them have what breaks naive cutting
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
GATED = _COMMON | {"head_dim": 16, "intermediate_size": 96, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GATED | {"tie_word_embeddings": True},
    "mistral": GATED | {"tie_word_embeddings": False, "sliding_window": None},
    "qwen2": GATED | {"tie_word_embeddings": True},
    "qwen3": GATED | {"tie_word_embeddings": False, "num_attention_heads": 8, "num_key_value_heads": 4},
    "phi3": GATED | {"tie_word_embeddings": False, "original_max_position_embeddings": 256},
    "opt": _COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
}
_WINDOWS: dict[str, Any] = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
_OF_KIND: dict[str, Any] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
}
_YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_PARTIAL: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
# The other types, each with what is its own switched on.
CONFIGS |= {
    "apertus": GATED | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "arcee": GATED | {"rope_parameters": _YARN},
    "biogpt": _COMMON | {"intermediate_size": 96},
    "cohere": GATED | {"logit_scale": 0.25},
    "cohere2": GATED | _WINDOWS | {"logit_scale": 0.25},
    "cwm": GATED | _WINDOWS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "ernie4_5": GATED | {"use_bias": True},
    "exaone4": GATED | _WINDOWS,
    "gemma": GATED,
    "gemma2": GATED | _WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma3_text": GATED | _WINDOWS | {"query_pre_attn_scalar": 16, "rope_parameters": _OF_KIND},
    "glm": GATED | {"rope_parameters": _PARTIAL},
    "glm4": GATED | {"rope_parameters": _PARTIAL},
    "granite": GATED | {"embedding_multiplier": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granite_swa": GATED | _WINDOWS | {"layer_rope_theta": [1e4, 0, 1e4, 0], "residual_multiplier": 0.5},
    "helium": GATED,
    "hunyuan_v1_dense": GATED,
    "hyperclovax": GATED | {"embedding_multiplier": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "use_post_norm": True},
    "internlm3": GATED,
    "iquestcoder": GATED,
    "jais2": GATED,
    "ministral": GATED | _WINDOWS,
    "ministral3": GATED | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}},
    "nanochat": GATED,
    "nemotron": GATED | {"rope_parameters": _PARTIAL},
    "olmo": GATED | {"clip_qkv": 2.0},
    "olmo2": GATED,
    "olmo3": GATED | _WINDOWS,
    "persimmon": _COMMON | {"intermediate_size": 96, "rope_parameters": _PARTIAL},
    "phi": GATED | {"rope_parameters": _PARTIAL},
    "seed_oss": GATED,
    "smollm3": GATED | {"no_rope_layers": [1, 0, 1, 0]},
    "stablelm": GATED | {"rope_parameters": _PARTIAL, "use_qkv_bias": True},
    "starcoder2": GATED,
    "vaultgemma": GATED | _WINDOWS | {"query_pre_attn_scalar": 16},
}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 3,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 16,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 10,
    "attention_bias": True,
}
# Hybrids: blocks with mixers of another kind among those that attend, of each kind two.
CONFIGS |= {
    "falcon_h1": GATED
    | _MAMBA
    | {
        "mamba_d_ssm": 96,
        "mamba_rms_norm": True,
        "attention_out_multiplier": 0.5,
        "mlp_multipliers": [0.7, 0.4],
        "ssm_multipliers": [0.5, 0.7, 1.0, 1.5, 2.0],
    },
    "granitemoehybrid": GATED
    | _MAMBA
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "mamba_n_heads": 8,
        "mamba_proj_bias": True,
        "shared_intermediate_size": 96,
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
    },
    "lfm2": GATED
    | {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "conv_bias": True,
        "intermediate_size": 135,
        "block_multiple_of": 32,
    },
    "minicpm3": GATED | _LATENT | {"scale_depth": 1.4, "q_lora_rank": None, "dim_model_base": 32},
    "nemotron_h": {key: value for key, value in GATED.items() if key != "num_hidden_layers"}
    | {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention", "full_attention"],
        "mamba_num_heads": 6,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "conv_kernel": 3,
        "chunk_size": 16,
    },
    "qwen3_5_text": GATED
    | _DELTA
    | {"layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"], "rope_parameters": _PARTIAL},
    "youtu": GATED | _LATENT | {"pad_token_id": None},  # with one its class zeroes that token's row whenever it loads a model
}
TINY_TYPES = tuple(sorted(CONFIGS))

# Mixtures of eight experts, two for each token.
_EXPERTS: dict[str, Any] = GATED | {"num_experts_per_tok": 2}
_SHARED: dict[str, Any] = _EXPERTS | {"num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 96}
_DELTA_AND_SHARED: dict[str, Any] = (
    _SHARED | _DELTA | {"layer_types": ["linear_attention", "full_attention"] * 2, "rope_parameters": _PARTIAL}
)
_DENSE_FIRST: dict[str, Any] = {"n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 32}
MIXTURES: dict[str, dict[str, Any]] = {
    "deepseek_v2": _EXPERTS
    | _LATENT
    | _DENSE_FIRST
    | {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
    "deepseek_v3": _EXPERTS | _LATENT | _DENSE_FIRST | {"n_group": 2, "topk_group": 1, "q_lora_rank": 24},
    "ernie4_5_moe": GATED | {"moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 2, "moe_intermediate_size": 32},
    "glm4_moe": _EXPERTS | _DENSE_FIRST | {"use_qk_norm": True},
    "gpt_oss": _EXPERTS | _WINDOWS | {"num_local_experts": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "granitemoe": _EXPERTS | {"num_local_experts": 8, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "hunyuan_v1_moe": _EXPERTS | {"num_experts": 8, "moe_topk": 2},
    "lfm2_moe": _EXPERTS
    | {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "conv_bias": True,
        "num_experts": 8,
        "moe_intermediate_size": 32,
        "num_dense_layers": 1,
        "routed_scaling_factor": 1.5,
    },
    "minimax_m2": _EXPERTS | {"num_local_experts": 8},
    "mixtral": _EXPERTS | {"num_local_experts": 8},
    "olmoe": _EXPERTS | {"num_experts": 8},
    "phimoe": _EXPERTS | {"num_local_experts": 8, "lm_head_bias": True, "attention_bias": True},
    "qwen2_moe": _SHARED,
    "qwen3_5_moe_text": _DELTA_AND_SHARED,
    "qwen3_next": _DELTA_AND_SHARED,
    "qwen3_moe": _EXPERTS | {"num_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": True},
}
TINY_MIXTURES = tuple(sorted(MIXTURES))

# Larger models that hold a language model: towers of two layers for images of 28 × 28 pixels.
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_PATCHES: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
_AXES: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
WRAPPED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": CONFIGS["gemma3_text"],
        "vision_config": _TOWER,
        "mm_tokens_per_image": 4,
        "image_token_index": 120,
        "boi_token_index": 121,
        "eoi_token_index": 122,
    },
    "internvl": {
        "text_config": CONFIGS["qwen2"] | {"model_type": "qwen2"},
        "vision_config": _TOWER | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 120,
        "image_seq_length": 1,
    },
    "llava": {
        "text_config": CONFIGS["llama"] | {"model_type": "llama", "tie_word_embeddings": False},
        "vision_config": _TOWER | {"model_type": "clip_vision_model", "projection_dim": 16},
        "image_token_index": 120,
    },
    "mistral3": {
        "text_config": CONFIGS["mistral"] | {"model_type": "mistral"},
        "vision_config": _TOWER | {"model_type": "pixtral", "head_dim": 8, "image_size": 56},
        "image_token_index": 120,
        "tie_word_embeddings": False,
    },
    "qwen3_vl": {
        "text_config": CONFIGS["qwen3"] | {"rope_parameters": _AXES},
        "vision_config": _PATCHES,
        "image_token_id": 120,
        "video_token_id": 121,
        "vision_start_token_id": 122,
        "vision_end_token_id": 123,
    },
}
TINY_WRAPPERS = tuple(WRAPPED)


def tiny_model(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Writes a random fp32 model of ``family`` and a character-level tokenizer into ``folder`` and returns it.

    ``overrides`` replace config keys (``num_hidden_layers=6``, ``attention_bias=True``, ``intermediate_size=256``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    random_model(family, seed=seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_model(family: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The model alone, in memory."""
    config = AutoConfig.for_model(family, **((CONFIGS | MIXTURES)[family] | overrides))
    with torch.random.fork_rng(devices=[]):  # of what is no matrix, the values that the class gives stay in part
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    return model


def tiny_wrapped(wrapper: str, folder: Path, *, seed: int = 0, text: dict[str, Any] | None = None, **overrides: Any) -> Path:
    """Writes a random fp32 vision-language model and what a processor has beside it into ``folder`` and returns it.

    ``text`` replaces keys of the language model's config, ``overrides`` keys of the whole's.
    """
    fields = WRAPPED[wrapper] | overrides
    fields |= {"text_config": fields["text_config"] | (text or {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(wrapper, **fields), dtype=torch.float32).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "do_resize": true}\n', encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}\n", encoding="utf-8")
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
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias") or name.endswith("expert_bias"):  # of routers
                buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
