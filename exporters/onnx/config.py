"""The config of a checkpoint as its family's own class, also where the folder names a class of ours."""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from pipeline.checkpoint import Checkpoint

OURS = {"model_type", "base_model_type", "block_configs", "auto_map", "layer_types", "per_layer_config", "biases"}


def stock_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """Everything but sizes per block: those are in ``checkpoint.geometry``. Runs no modelling file."""
    geometry = checkpoint.geometry
    fields = {key: value for key, value in checkpoint.config.items() if key not in OURS}
    # Heads are counted per block; one is legal for every config class, which would refuse counts that do not divide.
    fields |= {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": len(geometry.blocks)}
    return AutoConfig.for_model(geometry.family.model_type, **fields | {"head_dim": geometry.head_dim})


def context_length(checkpoint: Checkpoint) -> int:
    """Positions that the model was made for."""
    return int(stock_config(checkpoint).max_position_embeddings)
