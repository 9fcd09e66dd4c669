"""The tokens that are trained on: windows of the recovery texts, or of the calibration texts where there are none; and those held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from pipeline.architecture.geometry import Geometry
from pipeline.recover.recipe import RecoverSlice
from pipeline.sources.packed import Packed, packed_windows
from pipeline.sources.roles import texts_of
from pipeline.sources.windows import check_windows


def training_windows(tokenizer: Any, texts: Path, recipe: RecoverSlice, geometry: Geometry) -> Packed:
    """Windows of ``recipe.window`` tokens to train on, and ``recipe.held_out`` others from the ends of the same texts.

    Without ``recipe.windows`` every step reads new ones, as long as the texts have them.

    Raises:
        TrimlineError: a text is shorter than the recipe asks for, or the model cannot read such windows.
    """
    found = texts_of(texts, "recovery") or texts_of(texts, "calibration")
    count = recipe.windows or recipe.steps * recipe.batch
    drawn = packed_windows(
        tokenizer, found, count, recipe.window, recipe.seed, "recovery", apart=recipe.held_out, again=recipe.windows is None
    )
    check_windows(torch.cat((drawn.windows, drawn.apart)), geometry)
    return drawn


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows as causal language modelling takes them, each with its number."""

    def __init__(self, drawn: Packed) -> None:
        self._drawn = drawn

    def __len__(self) -> int:
        return len(self._drawn.order)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        number = self._drawn.order[place]
        return {"input_ids": self._drawn.windows[number], "number": torch.tensor(number)}
