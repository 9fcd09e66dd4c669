"""What transformers' own config classes say about a config.json, so that no rule of theirs is repeated here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.architecture.families import Family
from pipeline.architecture.families.mistral import MISTRAL
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError, shortened

OURS = {"model_type", "base_model_type", "block_configs", "auto_map", "per_layer_config", "biases", "qkv_bias", "architectures"}
# What config classes check against a head size that they take to be hidden size / heads.
ROTARY = ("rope_parameters", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings", "max_position_embeddings")
# Lists that may happen to be as long as the model is deep.
NOT_BY_BLOCK = re.compile(r"_ids?$|_idxs$|_multipliers$|_limit$|^mtp_|^architectures$|^block_configs$")


TYPES = ("layer_types", "layers_block_type")  # keys of the list that says what each block is
FLOAT, FLOATS = "__float__", {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def decoded(value: Any) -> Any:
    """What a config.json holds, with the numbers that transformers writes as objects, since JSON has none such: infinite ones."""
    if isinstance(value, Mapping):
        return FLOATS.get(str(value[FLOAT])) if set(value) == {FLOAT} else {key: decoded(found) for key, found in value.items()}
    return [decoded(found) for found in value] if isinstance(value, list) else value


def per_block(config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """The values of a config that are lists with an entry per block, whatever they are called: types, windows, switches.

    Args:
        config: of a model.
        blocks: that the model has.
    """
    lists = {key: list(value) for key, value in config.items() if isinstance(value, list | tuple)}
    return {key: value for key, value in lists.items() if len(value) == blocks and not NOT_BY_BLOCK.search(key)}


def lists_of_class(geometry: Geometry, config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """``per_block`` of what the stock config class makes of a config.json: what that leaves out, the class works out from the depth.

    Args:
        geometry: of the model.
        config: its config.json, in whatever profile.
        blocks: how many the class is told of.
    """
    return per_block(stock_config(geometry, config, blocks).to_dict(), blocks)


def values_of_class(geometry: Geometry, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the stock config class makes of a config.json beside sizes: settings that it leaves out, in today's spelling.

    Args:
        geometry: of the model.
        config: its config.json, in whatever profile.

    Raises:
        TrimlineError: the class refuses it.
    """
    try:
        values: dict[str, Any] = stock_config(geometry, config).to_dict()
        return values
    except Exception as error:  # whatever its validators meet in values that they do not expect
        raise refused_by_class(error) from None


def stock_config(geometry: Geometry, config: Mapping[str, Any], blocks: int | None = None) -> PretrainedConfig:
    """A config.json as its family's own class has it, but for heads and widths, which are counted per block in the geometry.

    Args:
        geometry: of the model.
        config: its config.json, in whatever profile; no modelling file is run.
        blocks: how many the class is told of; lists of another length are then left to it. None for as many as there are.
    """
    family, depth = geometry.family, len(geometry.blocks)
    told = depth if blocks is None else blocks
    left_to_it = per_block(config, depth).keys() if told != depth else ()
    fields = {key: decoded(value) for key, value in config.items() if key not in OURS and key not in left_to_it}
    # One head that fills the stream is legal for every config class: they refuse counts that do not divide it, and rotary
    # factors of another number than they take a head to have channels. Classes of other mixers tie these to the stream's width.
    heads = {family.heads_key: 1, **({} if family.kv_heads_key is None else {family.kv_heads_key: 1})}
    sizes = heads | {"hidden_size": geometry.head_dim, "head_dim": geometry.head_dim}
    made: PretrainedConfig = CONFIG_MAPPING[family.model_type](**fields | ({} if family.kinds.costs else sizes) | {family.layers_key: told})
    made.hidden_size = geometry.hidden
    return made


def accepts_heads(family: Family, config: Mapping[str, Any], heads: int) -> bool:
    """Whether the stock config class lets a model have ``heads`` query heads beside its hidden size and rotary factors.

    Raises:
        TrimlineError: it refuses the rotary factors themselves.
    """
    # Classes of other mixers check sizes of these too, which differ from their defaults together or not at all.
    told = set(config) - OURS if family.kinds.costs else set(ROTARY)
    given = {key: decoded(config[key]) for key in told if config.get(key) is not None}
    try:
        CONFIG_MAPPING[family.model_type](**given | {"hidden_size": config["hidden_size"], family.heads_key: heads})
    except StrictDataclassClassValidationError:
        return False
    except Exception as error:  # whatever its validators meet in values that they do not expect
        raise refused_by_class(error) from None
    return True


def refused_by_class(error: Exception) -> TrimlineError:
    """What is said where a config class of transformers raises anything."""
    why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
    return TrimlineError(f"transformers' config class refuses config.json ({why}).", "Fetch the checkpoint again or correct its config.")


def is_mistral_shaped(geometry: Geometry) -> bool:
    """Whether Mistral's stock class computes the same with the same tensors: same projections and norms, no biases."""
    family = geometry.family
    layout = [(linear.name, linear.rows, linear.columns) for linear in family.linears]
    if family.kinds.rules or family.carried:
        return False
    same = layout == [(linear.name, linear.rows, linear.columns) for linear in MISTRAL.linears] and family.norms == MISTRAL.norms
    return same and family.decilm is not None and not any(geometry.has_bias(linear) for linear in family.linears)


def has_sliding_window(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether any block attends to a window only; keys that config.json leaves out have the stock default."""
    stock = CONFIG_MAPPING[family.model_type]()
    if not config.get("use_sliding_window", getattr(stock, "use_sliding_window", True)):
        return False
    if "layer_types" in config:
        return any("sliding" in kind for kind in config["layer_types"] or ())
    return config.get("sliding_window", getattr(stock, "sliding_window", None)) is not None
