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
from pipeline.checkpoints.gguf_file import read_contents
from pipeline.common.errors import TrimlineError

REMEDY = "Take the published folder of safetensors, where these are in config.json."
# Sizes that tensors show, and words about the file.
SAYS_NO_NUMBER = frozenset(
    (
        *("vocab_size", "attention.causal", "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
        *("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count"),
    )
)
NEUTRAL: Mapping[str, Any] = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scale_linear": 1.0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
TENSORS = re.compile(
    r"(token_embd|output|output_norm|position_embd|blk\.\d+\.(?!rope_freqs|rope_factors|attn_rot_embd)[a-z0-9_.]+)\.(weight|bias)"
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

    mapping = cast(Mapping[str, Mapping[str, Any]], GGUF_CONFIG_MAPPING).get(architecture, {})
    taken = {key for key, name in mapping.items() if name is not None}
    for key, value in keys.items():
        if key in SAME:
            ours = SAME[key](config)
            if not any(_equal(value, one) for one in ours):
                has = " or ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in ours) or "nothing"
                yield f"{architecture}.{key} = {_shown(value)} (the config has {has})"
        elif key not in taken and key not in SAYS_NO_NUMBER and not (key in NEUTRAL and _equal(value, NEUTRAL[key])):
            yield f"{architecture}.{key} = {_shown(value)}"


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


def _rotary(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rotary embedding, or one for each kind of block."""
    found = config.get("rope_parameters") or {}
    kinds = [one for one in found.values() if isinstance(one, Mapping)]
    return kinds or [found]


def _bases(config: Mapping[str, Any]) -> list[Any]:
    return [one["rope_theta"] for one in _rotary(config) if "rope_theta" in one] or [config.get("rope_theta")]


def _head(config: Mapping[str, Any]) -> list[Any]:
    return [config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]]


def _turned(config: Mapping[str, Any]) -> list[Any]:
    share = next((one["partial_rotary_factor"] for one in _rotary(config) if "partial_rotary_factor" in one), None)
    return [int(_head(config)[0] * (share if share is not None else config.get("partial_rotary_factor") or 1.0))]


def _pattern(config: Mapping[str, Any]) -> list[Any]:
    """Which blocks have a window: a list, or every how many there is one without."""
    windowed = [kind == "sliding_attention" for kind in config.get("layer_types") or ()]
    counts = range(1, len(windowed) + 1)
    return [windowed, *(count for count in counts if windowed == [(block + 1) % count != 0 for block in range(len(windowed))])]


def _named(*names: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda config: [config[name] for name in names if config.get(name) is not None]


# What a config of transformers has under one of several names, or works out.
SAME: Mapping[str, Callable[[Mapping[str, Any]], list[Any]]] = {
    "rope.freq_base": _bases,
    "rope.freq_base_swa": _bases,
    "rope.dimension_count": _turned,
    "attention.key_length": _head,
    "attention.value_length": _head,
    "attention.layer_norm_rms_epsilon": _named(*EPSILONS),
    "attention.layer_norm_epsilon": _named(*EPSILONS),
    "use_parallel_residual": _named("use_parallel_residual"),
    "expert_weights_norm": _named("norm_topk_prob"),
    "expert_weights_scale": _named("routed_scaling_factor"),
    "attention.sliding_window_pattern": _pattern,
    "attention.sliding_window": _named("sliding_window"),
    "attn_logit_softcapping": _named("attn_logit_softcapping"),
    "final_logit_softcapping": _named("final_logit_softcapping"),
}
