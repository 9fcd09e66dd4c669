"""What a deploy target is: a server's name, what it needs of a package, and how its folder is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from deploy.recipe import PackageSlice
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.rebuild.consumers import consumers

Part = Literal["model", "onnx"]


@dataclass(frozen=True)
class ModelToServe:
    """What is to be served, as far as it is known when a target is asked whether it can.

    Before a run this is the dense model in the profile that the recipe names; when the package is written, the result.

    Attributes:
        geometry: sizes.
        profile: shape profile of the checkpoint.
        config: its config.json (before a run, the dense one's).
        files: names of the files in its folder, tokenizer included.
    """

    geometry: Geometry
    profile: Profile
    config: Mapping[str, Any]
    files: frozenset[str]

    @classmethod
    def of(cls, checkpoint: Checkpoint, profile: Profile) -> ModelToServe:
        names = frozenset(path.name for path in checkpoint.folder.iterdir())
        return cls(checkpoint.geometry, profile, checkpoint.config, names)


@dataclass(frozen=True)
class Obstacle:
    """Why a target cannot serve a candidate, and what to change; both without a capital and a full stop."""

    why: str
    change: str


@dataclass(frozen=True)
class Shipment:
    """The package that a target's folder is written into: complete but for ``serve/`` and the manifest.

    Attributes:
        folder: the package; ``model/`` and, where the target needs it, ``onnx/`` lie in it.
        options: device and threads; a target that computes keeps to them.
        events: progress.
        engine: folder of a TensorRT engine of this model, outside the package; None without one.
        card: the model card, without the section on servers.
    """

    folder: Path
    options: RunOptions
    events: Events
    engine: Path | None = None
    card: str = ""

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx"


class ServerTarget(Protocol):
    """One server. One file in this folder, one line in ``deploy.targets.TARGETS``."""

    @property
    def name(self) -> str:
        """What ``--for`` and ``package.targets`` call it; also the name of its folder below ``serve/``."""

    @property
    def needs(self) -> frozenset[Part]:
        """Parts of the package that its folder reads or points to."""

    @property
    def brings(self) -> tuple[str, ...]:
        """Other targets whose folders this one points to; they are written too."""

    @property
    def start(self) -> str:
        """The command that starts the server, typed in ``serve/<name>/``."""

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        """Why it cannot serve this model; None where it can. Asked before hours of pruning, and again at the end."""

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        """Writes into the empty folder ``out``, which lies at ``serve/<name>/`` of the package.

        Every path in what is written is relative to that folder, so that the package can be moved. The same package
        gives the same bytes. A target that converts weights reopens and gates what it wrote.

        Raises:
            TrimlineError: something is missing, or a gate fails.
        """


def as_consumer(name: str, candidate: ModelToServe) -> Obstacle | None:
    """The obstacle that the table of ``trimline inspect`` names for one of its rows."""
    verdict = next(row for row in consumers(candidate.geometry, candidate.profile, candidate.config) if row.consumer == name)
    return Obstacle(verdict.why, verdict.change) if verdict.stands_in_the_way else None
