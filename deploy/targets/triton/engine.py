"""The TensorRT engine of a run, as Triton's TensorRT backend loads it: the plan, and for which shapes it was built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.placing import link_or_copy
from exporters.tensorrt.builders import BUILDERS
from exporters.tensorrt.folder import ENGINE, RECORD
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json

PLAN = "model.plan"  # Triton's name for it
Shapes = tuple[tuple[int, ...], ...]  # least, where it is fastest, most; batch first


@dataclass(frozen=True)
class EngineFacts:
    """What Triton has to know of an engine.

    Attributes:
        file: the engine.
        record: its build.json.
        profiles: per optimisation profile the shapes of every input.
    """

    file: Path
    record: Path
    profiles: tuple[Mapping[str, Shapes], ...]

    @classmethod
    def of(cls, folder: Path | None) -> EngineFacts | None:
        """The engine of a build's folder, or of a package's step model; None without one, and of TensorRT-RTX, which Triton does not load.

        Raises:
            TrimlineError: the record is not one that a build writes, or the engine is missing.
        """
        if folder is None:
            return None
        record = read_json(folder / RECORD)
        if record.get("builder") != BUILDERS["tensorrt"].name:
            return None
        file = next((folder / name for name in (ENGINE, PLAN) if (folder / name).is_file()), None)
        if file is None:
            raise TrimlineError(f"There is no {ENGINE} in {folder}.", "Build the engine again.")
        return cls(file, folder / RECORD, _profiles(record, folder / RECORD))

    @property
    def batch(self) -> int:
        """Rows that every profile takes."""
        return min(most[0] for profile in self.profiles for _, _, most in profile.values())

    def dims(self, name: str) -> tuple[int, ...]:
        """Of an input, without the batch: its size where the profiles leave one only, else -1."""
        found = [shape[1:] for profile in self.profiles for shape in profile[name]]
        return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*found, strict=True))

    def most(self, name: str) -> tuple[int, ...]:
        """The largest sizes of an input, without the batch, in any profile."""
        return tuple(max(sizes) for sizes in zip(*(profile[name][-1][1:] for profile in self.profiles), strict=True))

    def place(self, out: Path) -> None:
        """Puts the plan and its record into a version folder."""
        link_or_copy(self.file, out / PLAN)
        link_or_copy(self.record, out / RECORD)


def shipped_engine(package: Path) -> Path | None:
    """The folder in a package that holds an engine for Triton; None where there is none."""
    return next((path.parent for path in sorted(package.glob(f"serve/triton/step/*/1/{RECORD}"))), None)


def _profiles(record: Mapping[str, Any], path: Path) -> tuple[Mapping[str, Shapes], ...]:
    try:
        found = tuple({name: _shapes(shapes) for name, shapes in profile["shapes"].items()} for profile in record["profiles"])
    except (KeyError, TypeError, ValueError, AttributeError):
        found = ()
    ranks = [{name: len(shapes[0]) for name, shapes in profile.items()} for profile in found]
    if not found or not ranks[0] or any(others != ranks[0] for others in ranks):
        raise TrimlineError(f"{path} does not say which shapes its engine takes.", "Build the engine again.")
    return found


def _shapes(given: Any) -> Shapes:
    """Three shapes of one rank, of whole numbers."""
    shapes = tuple(tuple(shape) for shape in given)
    sizes = [size for shape in shapes for size in shape]
    if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1 or not shapes[0] or any(type(size) is not int for size in sizes):
        raise ValueError(given)
    return shapes
