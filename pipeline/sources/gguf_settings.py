"""Whether all of a GGUF file that changes numbers is in the config that transformers made of it.

transformers 5.23 reads some keys of each architecture and passes over the others without a word: rotary scaling (keys, and the tensor
``rope_freqs.weight`` by which llama.cpp's converter hands on Llama 3.1's), caps, multipliers. A model that lacks one computes something else from
its first position on, and every comparison with it is one with the wrong model. So a key passes that the reader takes, that says nothing of numbers, or
whose value the config has; any other is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.gguf.archs import GGUF_ARCHS
from pipeline.checkpoints.gguf_file import read_contents
from pipeline.common.errors import TrimlineError

REMEDY = "Take the published folder of safetensors, where these are in config.json."
# Sizes that tensors show, and words about the file.
SAYS_NO_NUMBER = frozenset({"vocab_size", "attention.causal", "tensor_data_layout", "rope.scaling.finetuned"})
NEUTRAL: Mapping[str, Any] = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scale_linear": 1.0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
TENSORS = re.compile(
    r"(token_embd|token_embd_norm|output|output_norm|position_embd|blk\.\d+\.(?!rope_freqs|rope_factors|attn_rot_embd)[a-z0-9_.]+)\.(weight|bias)"
)
FREQUENCIES = "rope_freqs.weight"  # older converters wrote ones


def check_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Compares a file's keys and tensors with the config that transformers made of it.

    Args:
        path: the file.
        config: as transformers writes it, rotary embedding under ``rope_parameters``.

    Raises:
        TrimlineError: the config lacks something that changes what the model computes, or tensors would be lost.
    """
    file, names = read_contents(path)
    ours, theirs = config.get("query_pre_attn_scalar"), _worked_out_scalar(file.architecture, config)
    if theirs is not None and not _equal(ours, theirs):
        raise TrimlineError(
            f"{path.name} leaves the scale of its attention to llama.cpp, which takes 1/√{theirs:g}, and transformers' reader 1/√{ours:g}.",
            REMEDY,
        )
    if lost := [*_keys_passed_over(file.architecture, file.sizes, config), *_tensors_passed_over(path, names)]:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise TrimlineError(f"{path.name} says {', '.join(lost[:3])}{more}, which transformers' reader of GGUF files passes over.", REMEDY)
    geometry = Geometry.from_config(config)
    placed = sum(1 for _ in geometry.tensors())
    given = sum(name != FREQUENCIES and (name != "output.weight" or not geometry.tied) for name in names)
    if geometry.family.mixture is None and given > placed:  # experts are stacked there
        raise TrimlineError(
            f"{path.name} lists {given} tensors, and transformers' reader makes {placed} of them; the others would be lost.", REMEDY
        )


def _keys_passed_over(architecture: str, keys: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    known = {_plain(name): keys for name, keys in cast(Mapping[str, Mapping[str, Any]], GGUF_CONFIG_MAPPING).items()}
    taken = {key for key, name in known.get(_plain(architecture), {}).items() if name is not None}
    for key, value in keys.items():
        if key == "rope.scaling.original_context_length" and keys.get("rope.scaling.type", "none") == "none":
            continue
        if key in SAME:
            ours = SAME[key](config)
            if not any(_equal(value, one) for one in ours):
                has = " or ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in ours) or "nothing"
                yield f"{architecture}.{key} = {_shown(value)} (the config has {has})"
        elif key not in taken and key not in SAYS_NO_NUMBER and not (key in NEUTRAL and _equal(value, NEUTRAL[key])):
            yield f"{architecture}.{key} = {_shown(value)}"


def _plain(architecture: str) -> str:
    """llama.cpp writes qwen3moe and gpt-oss, transformers qwen3_moe and gpt_oss."""
    return architecture.replace("-", "").replace("_", "")


def _worked_out_scalar(architecture: str, config: Mapping[str, Any]) -> float | None:
    """``query_pre_attn_scalar`` as llama.cpp works it out, since no key holds it: of the width in the 27B models, else of a head."""
    row = GGUF_ARCHS.get(architecture)
    if row is None or not row.unlike:
        return None
    return config["hidden_size"] / config["num_attention_heads"] if config["num_hidden_layers"] == row.unlike else float(_head(config)[0])


def _tensors_passed_over(path: Path, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name == FREQUENCIES and _are_ones(path):
            continue
        if TENSORS.fullmatch(name) is None:
            yield f"a tensor {name}"


def _are_ones(path: Path) -> bool:
    found = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == FREQUENCIES)
    return found.tensor_type is gguf.GGMLQuantizationType.F32 and bool(np.all(found.data == 1))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]


def _equal(value: Any, ours: Any) -> bool:
    if isinstance(value, int | float) and isinstance(ours, int | float):
        return math.isclose(value, ours, rel_tol=1e-5)
    return bool(value == ours)


def _rotary(config: Mapping[str, Any], kind: str = "full_attention") -> Mapping[str, Any]:
    """The rotary embedding; of one kind of block where each has its own."""
    found = config.get("rope_parameters") or {}
    own = found.get(kind)
    return own if isinstance(own, Mapping) else found


def _base(kind: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda config: [_rotary(config, kind).get("rope_theta", config.get("rope_theta"))]


def _scaling(key: str, without: Any) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Of the blocks that see the whole text, which is whose scaling a file has."""

    def found(config: Mapping[str, Any]) -> list[Any]:
        value = _rotary(config).get(key)
        return [without if value in (None, "default") else value]

    return found


def _expert_width(config: Mapping[str, Any]) -> list[Any]:
    """Of classes without a size of their own for experts it is that of the FFN."""
    return [config.get("moe_intermediate_size") or config.get("intermediate_size")]


def _window(config: Mapping[str, Any]) -> list[Any]:
    """Some converters write 0 where there is none."""
    return [config.get("sliding_window") or 0]


def _head(config: Mapping[str, Any]) -> list[Any]:
    return [config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]]


def _turned(config: Mapping[str, Any]) -> list[Any]:
    share = _rotary(config).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    return [int(_head(config)[0] * (share or 1.0))]


def _pattern(config: Mapping[str, Any]) -> list[Any]:
    """Which blocks have a window: a list, or every how many there is one without."""
    windowed = [kind == "sliding_attention" for kind in config.get("layer_types") or ()]
    counts = range(1, len(windowed) + 1)
    return [windowed, *(count for count in counts if windowed == [(block + 1) % count != 0 for block in range(len(windowed))])]


def _named(*names: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda config: [config[name] for name in names if config.get(name) is not None]


# What a config of transformers has under one of several names, or works out.
SAME: Mapping[str, Callable[[Mapping[str, Any]], list[Any]]] = {
    "rope.freq_base": _base("full_attention"),
    "rope.freq_base_swa": _base("sliding_attention"),
    "rope.scaling.type": _scaling("rope_type", "none"),
    "rope.scaling.factor": _scaling("factor", 1.0),
    "rope.scaling.original_context_length": _scaling("original_max_position_embeddings", None),
    "rope.scaling.yarn_beta_fast": _scaling("beta_fast", 32.0),
    "rope.scaling.yarn_beta_slow": _scaling("beta_slow", 1.0),
    "rope.dimension_count": _turned,
    "attention.key_length": _head,
    "attention.value_length": _head,
    "attention.layer_norm_rms_epsilon": _named(*EPSILONS),
    "attention.layer_norm_epsilon": _named(*EPSILONS),
    "expert_feed_forward_length": _expert_width,
    "expert_shared_feed_forward_length": _named("shared_expert_intermediate_size", "intermediate_size"),
    "use_parallel_residual": _named("use_parallel_residual"),
    "expert_weights_norm": _named("norm_topk_prob"),
    "expert_weights_scale": _named("routed_scaling_factor"),
    "attention.sliding_window_pattern": _pattern,
    "attention.sliding_window": _window,
    "attn_logit_softcapping": _named("attn_logit_softcapping"),
    "final_logit_softcapping": _named("final_logit_softcapping"),
}
