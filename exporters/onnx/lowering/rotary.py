"""Rotary tables of the fused graph, as transformers' own module of the family computes them.

GroupQueryAttention turns queries and keys by two tables: the cosine and the sine of every position. Whatever scaling gives
a position the same angles in every text is therefore right for every family as soon as the tables are. Two kinds look at the
length of the text. ``dynamic`` scales nothing before the model's last position, where every table ends. ``longrope`` has
other angles for texts beyond an original length, and keys in the cache have been turned already: its tables end there.
ONNX Runtime refuses a longer text than its tables have rows.

Some models have a rotary embedding for each kind of block. Each kind has tables of its own then.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from exporters.positions import promised
from pipeline.architecture.families import Family
from pipeline.common.errors import TrimlineError, shortened

SCALINGS = {"default", "linear", "llama3", "yarn", "proportional", "dynamic", "longrope"}
CHUNK = 2**16  # positions that transformers' module is asked for at once: it takes several times the room of a table
WIDTH = 8  # columns of a table come in multiples of this: 16 channels of a head
ALL = ""  # the kind of block where all have one rotary embedding
Tables = tuple[torch.Tensor, torch.Tensor]


def rotary_kinds(config: PretrainedConfig) -> tuple[str, ...]:
    """Per block, which of the model's rotary embeddings is its own: the block's type, or ``ALL``."""
    if not _by_kind(config):
        return (ALL,) * int(config.num_hidden_layers)
    return tuple(str(kind) for kind in config.layer_types)


def rotary_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """What the config says of each rotary embedding that a block has; of a model without any, nothing."""
    stated = getattr(config, "rope_parameters", None) or {}
    return [stated[kind] or {} for kind in sorted(set(rotary_kinds(config)))] if _by_kind(config) else [stated]


def rotary_obstacle(family: Family, config: PretrainedConfig) -> str | None:
    """Why GroupQueryAttention would not turn queries and keys as this config says; None where it does."""
    for rotary in rotary_parameters(config):
        if (scaling := rotary.get("rope_type", "default")) not in SCALINGS:
            return f"its rotary embedding is of type {scaling!r}"
    for kind in sorted(set(rotary_kinds(config))):
        columns = _turned(_module(family, config), torch.arange(1), kind)[0].shape[-1]
        if columns % WIDTH:
            return f"its rotary embedding turns {2 * columns} channels of a head, and ONNX Runtime's GroupQueryAttention takes multiples of {2 * WIDTH}"
    return None


def follows_the_text(family: Family, config: PretrainedConfig) -> bool:
    """Whether transformers computes angles anew by the length of each text; a family may call something else ``dynamic``."""
    if all(rotary.get("rope_type") != "dynamic" for rotary in rotary_parameters(config)):
        return False
    scalings = _module(family, config).rope_type
    return "dynamic" in (scalings.values() if isinstance(scalings, dict) else [scalings])


def table_positions(config: PretrainedConfig) -> int:
    """Positions that have the same angles in every text which the tables hold."""
    positions = promised(int(config.max_position_embeddings))
    ends = (
        int(rotary["original_max_position_embeddings"]) for rotary in rotary_parameters(config) if rotary.get("rope_type") == "longrope"
    )
    return min((positions, *ends))


def rotary_tables(family: Family, config: PretrainedConfig, kind: str = ALL) -> Tables:
    """Cosines and sines, scaled as the attention wants them, (positions, rotated channels / 2) each, fp32."""
    module = _module(family, config)
    parts = [_turned(module, positions, kind) for positions in torch.arange(table_positions(config)).split(CHUNK)]
    cosines, sines = (torch.cat(tables) for tables in zip(*parts, strict=True))
    return cosines, sines


def _by_kind(config: PretrainedConfig) -> bool:
    stated = getattr(config, "rope_parameters", None) or {}
    return any(kind in stated for kind in getattr(config, "layer_types", None) or ())


def _turned(module: Any, positions: torch.Tensor, kind: str) -> Tables:
    tables = module(torch.zeros(1), positions[None], *([kind] if kind else []))
    cosines, sines = (table[0, :, : table.shape[-1] // 2].contiguous() for table in tables)  # the other half is the same
    return cosines, sines


def _module(family: Family, config: PretrainedConfig) -> Any:
    modelling = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    kind = getattr(modelling, f"{family.class_prefix}RotaryEmbedding")
    try:
        return kind(config)
    except Exception as error:  # whatever its arithmetic meets in values that the config class lets through
        why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise TrimlineError(f"transformers cannot compute this model's rotary embedding ({why}).", "Correct its config.") from None
