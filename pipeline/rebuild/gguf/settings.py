"""What a model computes beside its projections, in llama.cpp's terms: rotary embeddings, windows, scales, caps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.stock import has_sliding_window, values_of_class
from pipeline.common.errors import TrimlineError, shown

# Config keys that change what a model computes, and the value with which they change nothing.
NEUTRAL: dict[str, Any] = {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "clip_qkv": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "llama_4_scaling_beta": None,
    "routed_scaling_factor": 1.0,
}
WINDOW, EVERYTHING = "sliding_attention", "full_attention"
RAMP = (32.0, 1.0)  # of YaRN, where a config does not say


@dataclass(frozen=True)
class GgufRotary:
    """A rotary embedding.

    Attributes:
        kind: as transformers calls it.
        base: of the angles.
        turned: channels of each head that turn.
        factor: by which positions are stretched; 1 where they are not.
        original: positions before YaRN stretched them; 0 for other kinds.
        attention: what YaRN multiplies queries and keys by, over what it does by default.
        ramp: YaRN's fast and slow number of turns.
        exact: YaRN's ramp begins and ends between channels.
    """

    kind: str
    base: float
    turned: int
    factor: float = 1.0
    original: int = 0
    attention: float = 1.0
    ramp: tuple[float, float] = RAMP
    exact: bool = False


@dataclass(frozen=True)
class GgufSettings:
    """What a checkpoint's config says, filled in by its stock class.

    Attributes:
        values: config keys and values.
        rotary: of blocks that attend to everything, or of all.
        in_windows: of blocks that attend to a window.
        windows: for every block, whether it attends to a window.
        window: how wide that is; 0 where no block has one.
        turning: for every block, whether it has a rotary embedding.
        scale: what scores are multiplied by.
    """

    values: Mapping[str, Any]
    rotary: GgufRotary
    in_windows: GgufRotary
    windows: tuple[bool, ...]
    window: int
    turning: tuple[bool, ...]
    scale: float

    def setting(self, key: str) -> Any:
        """A value; one with which the key changes nothing where the model has no such key."""
        return self.values.get(key, NEUTRAL.get(key))


def gguf_settings(geometry: Geometry, config: Mapping[str, Any]) -> GgufSettings:
    """Settings of the model that ``config`` belongs to; ``geometry`` may have other sizes.

    Raises:
        TrimlineError: the stock config class refuses the config, or a value in it cannot be used.
    """
    own = Geometry.from_config(config)
    values = values_of_class(own, config)
    stated = values.get("rope_parameters") or {}
    by_kind = WINDOW in stated or EVERYTHING in stated
    everywhere = stated.get(EVERYTHING, {}) if by_kind else stated
    rotary = _rotary(everywhere, geometry.head_dim)
    windowed = has_sliding_window(own.family, config)
    depth = len(own.blocks)
    windows = tuple(kind == WINDOW for kind in values.get("layer_types") or ()) if windowed else ()
    windows = windows if len(windows) == depth else (windowed,) * depth
    turning = tuple(bool(turns) for turns in values.get("no_rope_layers") or ())
    extra = {key: everywhere[key] for key in NEUTRAL if everywhere.get(key) is not None}
    return GgufSettings(
        values={**values, **extra},
        rotary=rotary,
        in_windows=_rotary(stated.get(WINDOW, everywhere) if by_kind else stated, geometry.head_dim),
        windows=windows,
        window=int(values.get("sliding_window") or 0) if any(windows) else 0,
        turning=turning if len(turning) == depth else (True,) * depth,
        scale=_scale(values, geometry.head_dim),
    )


def _scale(values: Mapping[str, Any], head_dim: int) -> float:
    if values.get("attention_multiplier") is not None:
        return float(values["attention_multiplier"])
    return float(values.get("query_pre_attn_scalar") or head_dim) ** -0.5


def _rotary(stated: Mapping[str, Any], head_dim: int) -> GgufRotary:
    try:
        return _of_kind(stated, head_dim)
    except (TypeError, ValueError, KeyError) as error:
        raise TrimlineError(f"config.json has an unusable rope_parameters: {shown(stated)} ({error}).", "Correct the config.") from None


def _of_kind(stated: Mapping[str, Any], head_dim: int) -> GgufRotary:
    kind = str(stated.get("rope_type") or stated.get("type") or "default")
    turned = int(head_dim * float(stated.get("partial_rotary_factor") or 1.0))
    plain = GgufRotary(kind, float(stated.get("rope_theta") or 10000.0), turned)
    if kind == "dynamic" and stated.get("alpha"):  # Hunyuan: a base, whatever it is called
        return replace(plain, kind="default", base=plain.base * float(stated["alpha"]) ** (turned / (turned - 2)))
    if kind == "linear":
        return replace(plain, factor=float(stated["factor"]))
    return _yarn(plain, stated) if kind == "yarn" else plain


def _yarn(plain: GgufRotary, stated: Mapping[str, Any]) -> GgufRotary:
    factor = float(stated["factor"])
    usual = _softening(factor, 1.0)
    whole, over = stated.get("mscale"), stated.get("mscale_all_dim")
    told = stated.get("attention_factor")
    if told is None:
        told = _softening(factor, float(whole)) / _softening(factor, float(over)) if whole and over else usual
    return replace(
        plain,
        factor=factor,
        original=int(stated["original_max_position_embeddings"]),
        attention=float(told) / usual,
        ramp=(float(stated.get("beta_fast") or RAMP[0]), float(stated.get("beta_slow") or RAMP[1])),
        exact=not stated.get("truncate", True),
    )


def _softening(factor: float, weight: float) -> float:
    """YaRN (arXiv 2309.00071), section 3.4."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
