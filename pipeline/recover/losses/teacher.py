"""The dense model as teacher: what enters its head, computed for every batch, or once for every window and kept on disk.

Kept are the states and not the logits: a hundredth of the bytes, and the head makes the same logits of them bit for bit. Where windows are
read again and again and the student's head is plain, ``expected.py`` says what is kept instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from pipeline.artefacts.artefact import file_digest
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.recover.losses.expected import expectations
from pipeline.recover.losses.head import Head
from pipeline.tensors.tensorfile import save_one_by_one

STATES, SEAL = "teacher.safetensors", "teacher.json"
DISK_SHARE = 0.5  # of what is free, that states may take


class Teacher:
    """It, in evaluation mode, without gradients."""

    def __init__(self, model: Any, blocks: nn.ModuleList) -> None:
        """Of a causal language model and its decoder blocks."""
        self.model, self.head, self._blocks = model.requires_grad_(False).eval(), Head(model, blocks), blocks
        self._kept: Any = None
        self._expects: tuple[torch.Tensor, float] | None = None

    def share_head(self, student: Head) -> None:
        """One head in memory instead of two, where both are the same and the student's is not trained."""
        ours, theirs = self.head.weight, student.weight
        if not student.trained and ours.dtype == theirs.dtype and torch.equal(ours, theirs):
            ours.data = theirs.data

    @property
    def expects(self) -> bool:
        """Whether what is kept is what ``expected_divergence`` takes, and no states."""
        return self._expects is not None

    @torch.no_grad()
    def states(self, token_ids: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
        """What enters the head, (N, S, H), of windows (N, S) that may be kept by their numbers (N,)."""
        if self._kept is None or numbers is None:
            return self.head.entering(lambda: self.model(input_ids=token_ids, use_cache=False))
        return torch.stack([self._kept.get_tensor(str(number)) for number in numbers.tolist()]).to(token_ids.device)

    def bytes_of(self, windows: torch.Tensor) -> int:
        """What the states of windows (N, S) take on disk."""
        weight = self.head.weight
        return windows.numel() * (weight.shape[1] + 1) * 4

    def keep(self, windows: torch.Tensor, work: Path, events: Events, expects: tuple[torch.Tensor, float] | None = None) -> None:
        """Puts the states of windows (N, S) on disk, unless they are there whole, and lets go of the blocks' weights.

        Args:
            windows: by number.
            work: folder of this training alone.
            events: one progress step a window.
            expects: the student's head and the temperature, to keep expectations instead of states.

        Raises:
            TrimlineError: the file was changed since it was written.
        """
        work.mkdir(parents=True, exist_ok=True)
        place = work / STATES
        self._expects = expects
        if not (work / SEAL).is_file():
            with events.progress(f"the dense model reads {windows.numel():,} tokens", len(windows)) as advance:
                save_one_by_one(place, _States(self, windows, advance))
            write_json(work / SEAL, {"sha256": file_digest(place)})
        elif read_json(work / SEAL) != {"sha256": file_digest(place)}:
            raise TrimlineError(f"{place} was changed since it was written.", f"Remove {work} to train from the start.")
        self._kept = safe_open(str(place), framework="pt")  # type: ignore[no-untyped-call]
        for block in self._blocks:
            block.to(device="meta")


def room_for(states: int, work: Path) -> bool:
    """Whether the disk has room for so many bytes of states."""
    work.mkdir(parents=True, exist_ok=True)
    return states <= DISK_SHARE * shutil.disk_usage(work).free


class _States:
    """States of every window under its number, each computed when it is asked for."""

    def __init__(self, teacher: Teacher, windows: torch.Tensor, advance: Any) -> None:
        self._teacher, self._windows, self._advance = teacher, windows, advance

    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self._windows)))

    def __getitem__(self, name: str) -> torch.Tensor:
        device = next(self._teacher.model.parameters()).device
        found = self._teacher.states(self._windows[int(name)][None].to(device), None)[0]
        self._advance(1)
        if self._teacher._expects is not None:
            found = expectations(found, self._teacher.head, *self._teacher._expects)
        return found.cpu()

    def form(self, name: str) -> torch.Tensor:
        """Shape and dtype of one window's states."""
        weight, window = self._teacher.head.weight, self._windows.shape[1]
        if self._teacher._expects is not None:
            return torch.empty(window, self._teacher._expects[0].shape[1] + 1, device="meta")
        return torch.empty(window, weight.shape[1], dtype=weight.dtype, device="meta")
