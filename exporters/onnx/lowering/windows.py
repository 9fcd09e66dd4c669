"""How far back each block looks, as the stock class of its family decides it."""

from __future__ import annotations

from transformers import PretrainedConfig

from pipeline.checkpoints.checkpoint import Checkpoint

FULL, SLIDING = "full_attention", "sliding_attention"


def window_obstacle(config: PretrainedConfig) -> str | None:
    """Why it is not known how far back this model looks; None where it is."""
    window = getattr(config, "sliding_window", None)
    if window is None or _knows(config, "sliding_window"):
        return None
    # transformers' cache goes by the key, its attention without a cache does not.
    return f"its config.json has a sliding window of {window} tokens, and {type(config).__name__} knows none"


def attention_windows(checkpoint: Checkpoint, config: PretrainedConfig) -> tuple[int | None, ...]:
    """Tokens that each block attends to, its own included; None where it attends to everything before it.

    Args:
        checkpoint: whose blocks they are.
        config: its config as the stock class has it, for as many blocks. Classes that let blocks differ have a type per
            block; the others have one window for all, or none.
    """
    blocks = len(checkpoint.geometry.blocks)
    window = config.sliding_window if _knows(config, "sliding_window") else None
    if window is None or window >= config.max_position_embeddings:
        return (None,) * blocks
    if not _knows(config, "layer_types"):
        return (window,) * blocks
    types = checkpoint.config.get("layer_types") or config.layer_types
    return tuple(window if kind == SLIDING else None for kind in types)


def _knows(config: PretrainedConfig, key: str) -> bool:
    """Whether the stock class has this key: a config holds whatever else config.json says as well."""
    return key in type(config).__dataclass_fields__
