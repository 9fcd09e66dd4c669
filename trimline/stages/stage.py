"""The kinds of rows in the table of stages: what it needs, what its key covers, and its work. The rows themselves stand in ``trimline/stages/table.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from benchmarks.machine.environment import fingerprint, versions
from pipeline.artefacts.artefact import Artefact
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from trimline.recipe import Recipe
from trimline.stages.keys import stage_code
from trimline.stages.lanes import family_of, opened
from trimline.stages.names import RECOVERED, SMALLER, SOURCE, Form, Lane, Name
from trimline.stages.rounds import Round, Rounding

S = TypeVar("S")  # what the work of a stage reads of the recipe
T = TypeVar("T")
Function = Callable[..., Any]


@dataclass(frozen=True)
class StageCase:
    """What a row is asked about.

    Attributes:
        recipe: the whole of it.
        name: of what is to be made.
        done: what was made before.
    """

    recipe: Recipe
    name: Name
    done: Mapping[Name, Artefact]

    @property
    def lane(self) -> Lane:
        """The model that the stage is about."""
        return present(self.name.lane)

    def made(self, *stages: str) -> tuple[Name, ...]:
        """What some stages made in this run, in order."""
        return tuple(name for name in self.done if name.stage in stages)


@dataclass(frozen=True)
class Inputs(Generic[S]):
    """What the work of a stage gets, beside its empty output folder.

    Attributes:
        slice: what it reads of the recipe.
        artefacts: those that its row names.
        options: device, dtype, threads.
        events: progress.
        name: of what it makes.
        command: what was typed.
        rounds: those gone through towards a target of time.
        timing_cache: file of kernel timings, read and added to.
        states: folder of what must survive a kill; None keeps it beside the output.
    """

    slice: S
    artefacts: Mapping[Name, Artefact]
    options: RunOptions
    events: Events
    name: Name
    command: str = ""
    rounds: tuple[Round, ...] = ()
    timing_cache: Path | None = None
    states: Path | None = None

    def maybe(self, *names: Name) -> Path | None:
        """The folder of the first of some artefacts that is there."""
        return next((opened(self.artefacts, name) for name in names if name in self.artefacts), None)

    def folder(self, *names: Name) -> Path:
        """The same, where the row says that one of them is there."""
        return present(self.maybe(*names))

    @property
    def checkpoint(self) -> Path:
        """The folder of the one model that the stage is about."""
        return self.folder(SOURCE, SMALLER, RECOVERED)

    @property
    def lane(self) -> Lane:
        """The model that the stage is about."""
        return present(self.name.lane)


def present(value: T | None) -> T:
    """What the order of the jobs makes sure of: a stage is begun only where its slice and its inputs are there."""
    assert value is not None
    return value


def nothing(case: StageCase) -> tuple[Name, ...]:
    """No artefacts."""
    return ()


def always(*names: Name) -> Callable[[StageCase], tuple[Name, ...]]:
    """The same artefacts whatever the recipe says."""
    return lambda case: names


def whole_slice(inputs: Inputs[Any]) -> dict[str, Any]:
    """All that the work reads of the recipe counts in the key."""
    return {"recipe": inputs.slice.model_dump(mode="json")}


@dataclass(frozen=True)
class StageRow(Generic[S]):
    """What every row says.

    Attributes:
        name: of the stage, and the start of its artefacts' folder names.
        reads: what its work reads of the recipe.
        inputs: the artefacts that it is made from.
        beside: further artefacts that its work opens; the key does not cover them, since it covers what they were made from or the
            result does not depend on them.
        form: of the model that it judges, where a stage judges several.
        called: what messages call the stage, where that is not its name.
        several: whether it is about one of several models, which messages name.
        timed: whether it measures speed, so that nothing else may run beside it.
    """

    name: str
    _: KW_ONLY
    reads: Callable[[Recipe], S]
    inputs: Callable[[StageCase], Iterable[Name]] = nothing
    beside: Callable[[StageCase], Iterable[Name]] = nothing
    form: Form = ""
    called: str = ""
    several: bool = True
    timed: bool = False

    def title(self, name: Name) -> str:
        """What messages call the job of making an artefact: ``evaluate_graph pruned``."""
        about = name.lane.model if name.lane and self.several else name.part.number if name.part else ""
        return f"{self.called or self.name} {about}".rstrip()

    def needs(self, case: StageCase) -> dict[Name, Artefact]:
        """Every artefact that its work opens."""
        return {name: case.done[name] for name in (*self.inputs(case), *self.beside(case))}


@dataclass(frozen=True)
class Check(StageRow[S]):
    """A stage that makes nothing: it raises what is to be said before hours of work.

    Attributes:
        work: raises TrimlineError.
    """

    _: KW_ONLY
    work: Callable[[Inputs[S]], None]


@dataclass(frozen=True)
class Loop(StageRow[Recipe]):
    """Goes through other stages until something holds, and makes nothing of its own.

    Attributes:
        work: has a run do them; returns every round.
    """

    _: KW_ONLY
    reads: Callable[[Recipe], Recipe] = lambda recipe: recipe
    work: Callable[[Rounding], tuple[Round, ...]]


@dataclass(frozen=True)
class Stage(StageRow[S]):
    """A stage that makes an artefact.

    Attributes:
        work: writes it into the empty folder that it is given.
        by: the functions that do the work; the code in the key is what their modules reach.
        counts: what of the recipe, and whatever else it reads, is in the key.
        options: whether device, dtype and threads are in the key as they are.
        machine: whether the machine is in the key.
        methods: whether methods of the recipe's steps run.
        families: whether the dense model's family decides what is written.
        targets: whether servers' folders are written.
        wanted: whether there is anything to do.
        resumes: whether it keeps states to go on from, which are removed afterwards.
    """

    _: KW_ONLY
    work: Callable[[Inputs[S], Path], None]
    by: Function | tuple[Function, ...]
    counts: Callable[[Inputs[S]], dict[str, Any]] = whole_slice
    options: bool = True
    machine: Callable[[S], bool] = lambda slice_: False
    methods: bool = False
    families: bool = True
    targets: bool = False
    wanted: Callable[[StageCase], bool] = lambda case: True
    resumes: bool = False

    def depends(self, case: StageCase, inputs: Inputs[S]) -> dict[str, Any]:
        """All that its artefact depends on: hashed, that is the key."""
        found = {"inputs": {str(name): case.done[name].key for name in self.inputs(case)}} | self.counts(inputs)
        if self.options:
            found["options"] = inputs.options.as_record()
        if self.machine(inputs.slice):
            found["machine"] = fingerprint(inputs.options.threads)
        family = family_of(case.done) if SOURCE in case.done else None
        return found | {"code": self.code(case.recipe, family), "libraries": versions()}

    def code(self, recipe: Recipe | None, family: str | None) -> str:
        """Hash of the code that the work can reach.

        Args:
            recipe: whose methods and targets it uses; None where it uses none.
            family: of the dense model; None where it is not known which, so all count.
        """
        modules = [function.__module__ for function in (self.by if isinstance(self.by, tuple) else (self.by,))]
        known = None if family is None else (family,)
        return stage_code(
            *modules,
            steps=recipe.prune if recipe and self.methods else None,
            model_types=known if self.families else (),
            package=recipe.package if recipe and self.targets else None,
        )
