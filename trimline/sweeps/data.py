"""What a sweep found, as plain values: ``sweep.json`` holds it, and every rendering reads only it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.common.errors import TrimlineError
from trimline.reporting.data import STRICT, BlockRow, Measure, Phase, TargetRow, TaskRow

FILE = "sweep.json"
POINTS = "points"


@dataclass(frozen=True)
class Speed:
    """One workload of one model, against dense in the same rounds.

    Attributes:
        workload: as the benchmark names it, such as ``512/1``.
        phase: the part of the request that is timed.
        latency: seconds of one call, the median over rounds.
        speedup: dense's time over this model's, round by round and opening by opening; None for dense itself.
        control: dense over dense again in the same rounds.
        verdict: what the comparison shows, as the benchmark words it.
        run: folder of the interleaved run, from the sweep's folder; models of one run were timed side by side.
    """

    workload: str
    phase: Phase
    latency: float
    speedup: Measure | None
    control: Measure | None = None
    verdict: str = ""
    run: str = ""

    @property
    def axis(self) -> tuple[str, Phase]:
        """What it may be compared along."""
        return self.workload, self.phase


@dataclass(frozen=True)
class PointRow:
    """One model of a sweep; folders are from the sweep's folder.

    Attributes:
        name: of the point; its folder lies in ``points``.
        settings: what the grid chose, by key.
        perplexity: with the interval of its ratio to dense's on the same windows, where there are windows to pair; its
            error is that of its own, over windows.
        window_losses: nats per predicted token.
        parameters, decoder_parameters, checkpoint_bytes: as in a report.
        speeds: of every workload.
        blocks: units per original block, before and after.
        tasks: of the lm-eval harness, beside dense; none for dense itself.
        targets: the speeds that the point was to have, judged by those shown.
        checkpoint, timed: the weights, and what the benchmark opened.
        failure: why the point has no model; empty where it has one.
        untimed: why it has no speed.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    perplexity: Measure | None = None
    window_losses: tuple[float, ...] = ()
    parameters: int | None = None
    decoder_parameters: int | None = None
    checkpoint_bytes: int | None = None
    speeds: tuple[Speed, ...] = ()
    blocks: tuple[BlockRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    targets: tuple[TargetRow, ...] = ()
    checkpoint: str = ""
    timed: str = ""
    failure: str = ""
    untimed: str = ""

    def speed(self, axis: tuple[str, Phase]) -> Speed | None:
        """Of one workload."""
        return next((speed for speed in self.speeds if speed.axis == axis), None)


@dataclass(frozen=True)
class Front:
    """What pays on one workload.

    Attributes:
        workload, phase: of the speeds.
        members: names of the points that no other one beats in both speed and perplexity, the slowest first.
        knee: the one to take where nothing else decides; None where the front has none.
        why: how it was picked, or why there is none.
    """

    workload: str
    phase: Phase
    members: tuple[str, ...]
    knee: str | None
    why: str

    @property
    def axis(self) -> tuple[str, Phase]:
        return self.workload, self.phase


@dataclass(frozen=True)
class SweepData:
    """Everything that a sweep shows.

    Attributes:
        title: heading.
        command: what was typed.
        model_source: where the dense model came from.
        recipe: YAML of the recipe that the points vary.
        grid: keys and values.
        evaluation: text, window and stride behind the perplexities, in words.
        text_sha256: of the evaluation text.
        window: tokens per window.
        runtime: what ran the models.
        dense: the model that all are compared with.
        points: in the grid's order, failed ones included.
        fronts: one per workload; the first is the headline.
        environment: where it was timed.
    """

    title: str
    command: str
    model_source: str
    recipe: str
    grid: dict[str, list[Any]]
    evaluation: str
    text_sha256: str
    window: int
    runtime: str
    dense: PointRow
    points: tuple[PointRow, ...]
    fronts: tuple[Front, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    format: Literal[1] = 1

    @property
    def models(self) -> tuple[PointRow, ...]:
        """Dense and every point that has a model."""
        return (self.dense, *(point for point in self.points if not point.failure))

    @property
    def failed(self) -> tuple[PointRow, ...]:
        """Points without a model, or without a speed."""
        return tuple(point for point in self.points if point.failure or point.untimed)

    @property
    def tasks(self) -> tuple[TaskRow, ...]:
        """Of the first point that has some; all have the same ones."""
        return next((point.tasks for point in self.points if point.tasks), ())

    def point(self, name: str) -> PointRow:
        """By name, dense included."""
        return next(row for row in (self.dense, *self.points) if row.name == name)

    def to_json(self) -> bytes:
        """The bytes of ``sweep.json``."""
        return bytes(_adapter().dump_json(self, indent=2)) + b"\n"

    @classmethod
    def read(cls, path: Path) -> SweepData:
        """Reads what ``to_json`` gave.

        Raises:
            TrimlineError: no such file, or not of this format.
        """
        try:
            return _adapter().validate_json(path.read_bytes())
        except FileNotFoundError:
            raise TrimlineError(f"{path} does not exist.", "Give a folder that `trimline sweep` wrote.") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise TrimlineError(f"{path} is no sweep: {place}: {first['msg']}.", "Run `trimline sweep` again.") from None


for _part in (Speed, PointRow, Front, SweepData):
    setattr(_part, "__pydantic_config__", STRICT)  # noqa: B010 - mypy knows no such attribute of a dataclass


def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(SweepData)
