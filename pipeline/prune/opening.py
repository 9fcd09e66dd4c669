"""What every measuring stage begins with: the dense model and the calibration windows."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_tokenizer
from pipeline.live.paging import open_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.sources.folder import CALIBRATION
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.recipe import CalibrationWindows
from pipeline.sources.windows import check_windows, draw_windows


def opened(source: Path, texts: Path, calibration: CalibrationWindows, options: RunOptions) -> tuple[ShrinkingModel, torch.Tensor]:
    """The dense model in the dtype that measures, and the calibration tokens, shape (N, S).

    Args:
        source: a source artefact or a checkpoint folder.
        texts: folder with calibration.txt; not read where the recipe gives token ids.
        calibration: which windows.
        options: device, dtype and threads.

    Raises:
        TrimlineError: the text is too short, or a window longer than the model's positions.
    """
    options.apply()
    folder = checkpoint_folder(source)
    checkpoint = Checkpoint(folder)
    text = "" if calibration.token_ids is not None else (texts / CALIBRATION).read_text(encoding="utf-8")
    windows = draw_windows(load_tokenizer(folder), text, calibration)
    check_windows(windows, checkpoint.geometry)
    dtype = options.resolved_dtype()
    model, paging = open_model(folder, options, dtype)
    return ShrinkingModel(model, checkpoint, paging), windows
