"""The config of a checkpoint as its family's own class, also where the folder names a class of ours."""

from __future__ import annotations

from transformers import PretrainedConfig

from exporters.positions import promised
from pipeline.checkpoints import stock
from pipeline.checkpoints.checkpoint import Checkpoint


def stock_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """Everything but sizes per block: those are in ``checkpoint.geometry``. Runs no modelling file."""
    return stock.stock_config(checkpoint.geometry, checkpoint.config)


def context_length(checkpoint: Checkpoint) -> int:
    """Positions that an export promises: those that the model was made for, within the bound of all exports."""
    return promised(int(stock_config(checkpoint).max_position_embeddings))
