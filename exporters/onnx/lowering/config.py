"""The config of a checkpoint as its family's own class, also where the folder names a class of ours."""

from __future__ import annotations

from transformers import AutoConfig, PretrainedConfig

from exporters.positions import promised
from pipeline.checkpoints.checkpoint import Checkpoint

OURS = {"model_type", "base_model_type", "block_configs", "auto_map", "per_layer_config", "biases"}


def stock_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """Everything but sizes per block: those are in ``checkpoint.geometry``. Runs no modelling file."""
    geometry = checkpoint.geometry
    fields = {key: value for key, value in checkpoint.config.items() if key not in OURS}
    # Heads are counted per block. One that fills the stream is legal for every config class: they refuse counts that do not
    # divide it, and rotary factors of another number than they take a head to have channels.
    fields |= {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": len(geometry.blocks)}
    fields |= {"head_dim": geometry.head_dim, "hidden_size": geometry.head_dim}
    config = AutoConfig.for_model(geometry.family.model_type, **fields)
    config.hidden_size = geometry.hidden
    return config


def context_length(checkpoint: Checkpoint) -> int:
    """Positions that an export promises: those that the model was made for, within the bound of all exports."""
    return promised(int(stock_config(checkpoint).max_position_embeddings))
