"""What transformers' own config classes say about a config.json, so that no rule of theirs is repeated here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.architecture.families import Family
from pipeline.architecture.families.mistral import MISTRAL
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError, shortened

# What config classes check against a head size that they take to be hidden size / heads.
ROTARY = ("rope_parameters", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings", "max_position_embeddings")


def accepts_heads(family: Family, config: Mapping[str, Any], heads: int) -> bool:
    """Whether the stock config class lets a model have ``heads`` query heads beside its hidden size and rotary factors.

    Raises:
        TrimlineError: it refuses the rotary factors themselves.
    """
    rotary = {key: config[key] for key in ROTARY if config.get(key) is not None}
    try:
        CONFIG_MAPPING[family.model_type](**rotary | {"hidden_size": config["hidden_size"], family.heads_key: heads})
    except StrictDataclassClassValidationError:
        return False
    except Exception as error:  # whatever its validators meet in values that they do not expect
        why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise TrimlineError(
            f"transformers' config class refuses config.json ({why}).", "Fetch the checkpoint again or correct its config."
        ) from None
    return True


def is_mistral_shaped(geometry: Geometry) -> bool:
    """Whether Mistral's stock class computes the same with the same tensors: same projections and norms, no biases."""
    family = geometry.family
    layout = [(linear.name, linear.rows, linear.columns) for linear in family.linears]
    same = layout == [(linear.name, linear.rows, linear.columns) for linear in MISTRAL.linears] and family.norms == MISTRAL.norms
    return same and not any(geometry.has_bias(linear) for linear in family.linears)


def has_sliding_window(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether any block attends to a window only; keys that config.json leaves out have the stock default."""
    stock = CONFIG_MAPPING[family.model_type]()
    if not config.get("use_sliding_window", getattr(stock, "use_sliding_window", True)):
        return False
    if "layer_types" in config:
        return any("sliding" in kind for kind in config["layer_types"] or ())
    return config.get("sliding_window", getattr(stock, "sliding_window", None)) is not None
