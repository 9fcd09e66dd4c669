"""What an artefact is called within a run: its stage, and the model or the part of the windows that it is about.

A name is also the job of making what it names, so one type says what there is, what is needed and what comes next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Model = Literal["dense", "rebuilt", "pruned"]  # the pruned model before recovery is the rebuilt one
Form = Literal["", "graph", "engine"]  # a checkpoint, what was exported of it, what was built of that


@dataclass(frozen=True)
class Lane:
    """One model in one form; its text is what people read, such as ``pruned graph``."""

    model: Model
    form: Form = ""

    def __str__(self) -> str:
        return f"{self.model} {self.form}".rstrip()

    @property
    def checkpoint(self) -> Lane:
        """The same model as it is before it is exported."""
        return Lane(self.model)

    @property
    def graph(self) -> Lane:
        """The same model as it was exported."""
        return Lane(self.model, "graph")

    @property
    def engine(self) -> Lane:
        """The same model as an engine was built of it."""
        return Lane(self.model, "engine")


@dataclass(frozen=True)
class Shard:
    """One of several parts of the calibration windows, counted from 0."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number} of {self.count}"


@dataclass(frozen=True)
class Name:
    """Of one artefact of a run; its text is what people read, such as ``evaluate pruned graph``.

    Attributes:
        stage: its stage, with which the name of its folder begins.
        lane: the model that it is about, where it is about one of several.
        part: of the calibration windows.
        round: towards a target of time, from 1, where another round is the one that counts; otherwise 0.
    """

    stage: str
    lane: Lane | None = None
    part: Shard | None = None
    round: int = 0

    def __str__(self) -> str:
        whole = " ".join((self.stage, *([self.about] if self.about else [])))
        return f"{whole}, round {self.round}" if self.round else whole

    @property
    def about(self) -> str:
        """Lane or part, for people; empty where it is about neither."""
        return str(self.lane or self.part or "")

    def of_round(self, number: int) -> Name:
        """The same artefact of a round that does not count."""
        return replace(self, round=number)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Name:
        """What ``dataclasses.asdict`` gave."""
        lane, part = record["lane"], record["part"]
        return cls(record["stage"], lane and Lane(**lane), part and Shard(**part), record["round"])


DENSE, REBUILT, PRUNED = Lane("dense"), Lane("rebuilt"), Lane("pruned")
LANES = (DENSE, PRUNED)  # what is exported, timed and compared

SOURCE, TEXT, PREFLIGHT, LATENCY, MEASURED = Name("source"), Name("text"), Name("preflight"), Name("latency"), Name("measure")
PLAN, SMALLER, RECOVERED, SETTLED = Name("prune"), Name("rebuild"), Name("recover"), Name("settle")
CURVE = Name("curve")
TIMINGS, REPORT, PACKAGE = Name("benchmark"), Name("report"), Name("package")

SHIPPED = "package"  # the folder to ship, in the output folder and in its artefact
KERNEL_TIMINGS = "timing.cache"  # of TensorRT, in the store; shared by all engines of one output folder


def evaluation_of(lane: Lane) -> Name:
    """The perplexity of a model in one form."""
    return Name("evaluate", lane)


def export_of(lane: Lane) -> Name:
    """The ONNX folder of a model, whichever form of it is spoken of."""
    return Name("export", lane.checkpoint)


def engine_of(lane: Lane) -> Name:
    """The engine folder of a model, whichever form of it is spoken of."""
    return Name("build", lane.checkpoint)


def tasks_of(lane: Lane) -> Name:
    """What the lm-eval harness found of a model in one form."""
    return Name("lm_eval", lane)
