"""Rotary tables of the fused graph, as transformers' own module of the family computes them.

GroupQueryAttention turns queries and keys by two tables: the cosine and the sine of every position. Whatever scaling gives
a position the same angles in every text is therefore right for every family as soon as the tables are. Two kinds look at the
length of the text. ``dynamic`` scales nothing before the model's last position, where every table ends. ``longrope`` has
other angles for texts beyond an original length, and keys in the cache have been turned already: its tables end there.
ONNX Runtime refuses a longer text than its tables have rows.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from transformers import PretrainedConfig

from exporters.positions import promised
from pipeline.architecture.families import Family
from pipeline.common.errors import TrimlineError, shortened

KINDS = {"default", "linear", "llama3", "yarn", "proportional", "dynamic", "longrope"}
CHUNK = 2**16  # positions that transformers' module is asked for at once: it takes several times the room of a table
WIDTH = 8  # columns of a table come in multiples of this: 16 channels of a head


def rotary_obstacle(family: Family, config: PretrainedConfig) -> str | None:
    """Why GroupQueryAttention would not turn queries and keys as this config says; None where it does."""
    kind = _parameters(config).get("rope_type", "default")
    if kind not in KINDS:
        return f"its rotary embedding is of type {kind!r}"
    columns = _module(family, config).inv_freq.numel()
    if columns % WIDTH:
        return f"its rotary embedding turns {2 * columns} channels of a head, and ONNX Runtime's GroupQueryAttention takes multiples of {2 * WIDTH}"
    return None


def table_positions(config: PretrainedConfig) -> int:
    """Positions that have the same angles in every text which the tables hold."""
    positions, rotary = promised(int(config.max_position_embeddings)), _parameters(config)
    if rotary.get("rope_type") != "longrope":
        return positions
    return min(positions, int(rotary["original_max_position_embeddings"]))


def rotary_tables(family: Family, config: PretrainedConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, scaled as the attention wants them, (positions, rotated channels / 2) each, fp32."""
    module, parts = _module(family, config), list[tuple[torch.Tensor, ...]]()
    for positions in torch.arange(table_positions(config)).split(CHUNK):
        tables = module(torch.zeros(1), positions[None])
        parts.append(tuple(table[0, :, : table.shape[-1] // 2].contiguous() for table in tables))  # the other half is the same
    cosines, sines = (torch.cat(tables) for tables in zip(*parts, strict=True))
    return cosines, sines


def _parameters(config: PretrainedConfig) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _module(family: Family, config: PretrainedConfig) -> Any:
    modelling = importlib.import_module(f"transformers.models.{family.model_type}.modeling_{family.model_type}")
    kind = getattr(modelling, f"{family.class_prefix}RotaryEmbedding")
    try:
        return kind(config)
    except Exception as error:  # whatever its arithmetic meets in values that the config class lets through
        why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise TrimlineError(f"transformers cannot compute this model's rotary embedding ({why}).", "Correct its config.") from None
