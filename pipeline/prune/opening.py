"""What every measuring stage begins with: the dense model and the calibration windows."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_tokenizer
from pipeline.live.paging import open_model
from pipeline.prune.allocation.targets import Consumer
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.steps import check_steps
from pipeline.sources.folder import CALIBRATION
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.windows import check_windows, draw_windows


def opened(
    source: Path,
    texts: Path,
    recipe: PruneSlice,
    options: RunOptions,
    consumer: Consumer = Consumer(),  # noqa: B008 - frozen
) -> tuple[ShrinkingModel, torch.Tensor]:
    """The dense model in the dtype that measures, and the calibration tokens, shape (N, S); arguments as of ``prune``."""
    options.apply()
    folder = checkpoint_folder(source)
    checkpoint = Checkpoint(folder)
    check_steps(recipe)
    text = "" if recipe.calibration.token_ids is not None else (texts / CALIBRATION).read_text(encoding="utf-8")
    windows = draw_windows(load_tokenizer(folder), text, recipe.calibration)
    check_windows(windows, checkpoint.geometry)
    dtype = options.resolved_dtype()
    model, paging = open_model(folder, options, dtype)
    return ShrinkingModel(model, checkpoint, paging, consumer), windows
