"""The tokens that are trained on: windows of the calibration text."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from pipeline.architecture.geometry import Geometry
from pipeline.recover.recipe import RecoverSlice
from pipeline.sources.recipe import CalibrationWindows
from pipeline.sources.windows import check_windows, draw_windows


def training_windows(tokenizer: Any, text: str, recipe: RecoverSlice, geometry: Geometry) -> torch.Tensor:
    """Token ids, shape (windows, window), drawn as calibration draws its own, by another seed.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or the model cannot read such windows.
    """
    wanted = CalibrationWindows(windows=recipe.windows, window=recipe.window, seed=recipe.seed)
    windows = draw_windows(tokenizer, text, wanted, "recovery")
    check_windows(windows, geometry)
    return windows


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows (N, S) as causal language modelling takes them: the labels are the tokens, the model shifts them."""

    def __init__(self, windows: torch.Tensor) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._windows[number], "labels": self._windows[number]}
