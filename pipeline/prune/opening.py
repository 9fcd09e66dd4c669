"""What every measuring stage begins with: the dense model and the calibration windows."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.live.finite import is_finite
from pipeline.live.loading import load_tokenizer
from pipeline.live.paging import open_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.packed import calibration_windows
from pipeline.sources.recipe import CalibrationWindows
from pipeline.sources.windows import check_windows


def opened(
    source: Path, texts: Path, calibration: CalibrationWindows, options: RunOptions, reads: bool = True
) -> tuple[ShrinkingModel, torch.Tensor]:
    """The dense model in the dtype that measures, and the calibration tokens, shape (N, S); (0, 0) where nothing reads them.

    Args:
        source: a source artefact or a checkpoint folder.
        texts: folder with calibration.txt; not read where the recipe gives token ids.
        calibration: which windows.
        options: device, dtype and threads.
        reads: whether anything is measured on the text; without, it is neither read nor split into tokens.

    Raises:
        TrimlineError: the folder may mean another model, holds NaN or Inf, the text is too short, or a window longer than the model's
            positions.
    """
    options.apply()
    folder = checkpoint_folder(source)
    checkpoint = Checkpoint(folder)
    checkpoint.demand_no_doubt()
    windows = _windows(folder, texts, calibration, checkpoint.geometry) if reads else torch.zeros(0, 0, dtype=torch.long)
    dtype = options.resolved_dtype()
    model, paging = open_model(folder, options, dtype)
    if paging is None:
        _demand_finite(model, checkpoint)
    else:
        paging.demands_finite = True  # as it reads
    return ShrinkingModel(model, checkpoint, paging), windows


def _windows(folder: Path, texts: Path, calibration: CalibrationWindows, geometry: Geometry) -> torch.Tensor:
    windows = calibration_windows(load_tokenizer(folder), texts, calibration)
    check_windows(windows, geometry)
    return windows


def _demand_finite(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Looks through a model that is whole in memory, so that nothing is read twice.

    Raises:
        TrimlineError: a tensor holds NaN or Inf, or numbers beyond the dtype that measures.
    """
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            checkpoint.demand_finite(name, checkpoint.tensor(name))
            kind = str(parameter.dtype).removeprefix("torch.")
            raise TrimlineError(
                f"The tensor {name} of {checkpoint.folder} holds numbers beyond {kind}.", "Use --dtype bfloat16 or float32."
            )
