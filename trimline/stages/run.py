"""One recipe in one output folder: every stage of the table runs, or is skipped where its artefact is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.folder import HTML, MANIFEST
from deploy.folder import REPORT as REPORT_FILE
from deploy.shipping import ship
from exporters.folder import GENAI_CONFIG
from pipeline.artefacts.artefact import RECORD, WORK, Artefact, digest, exclusive, expected, make_artefact
from pipeline.artefacts.inputs import Unchanged, Watched, changed
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.steps import resolve_steps
from pipeline.sources.model import locate
from pipeline.sources.places import typed_path
from pipeline.sources.text import demand_texts
from trimline.recipe import Recipe
from trimline.reporting.notebook import Report, render_notebook
from trimline.stages.lanes import Done, opened
from trimline.stages.names import (
    DENSE,
    KERNEL_TIMINGS,
    LANES,
    PACKAGE,
    PLAN,
    REPORT,
    SETTLED,
    SHIPPED,
    SOURCE,
    TIMINGS,
    Name,
    evaluation_of,
)
from trimline.stages.order import SHARED, curves, deciding, examining, judging, rebuilding
from trimline.stages.rounds import Round
from trimline.stages.stage import Check, Inputs, Loop, Stage, StageCase, StageRow
from trimline.stages.table import row_of, stage_of


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        folder: the output folder.
        artefacts: stage (and lane) to artefact, in the order they were needed.
        report: everything the report shows.
    """

    folder: Path
    artefacts: dict[str, Artefact]
    report: Report

    @property
    def package(self) -> Path:
        """The folder to ship."""
        return self.folder / SHIPPED

    @property
    def page(self) -> Path:
        """The report to look at."""
        return self.folder / HTML

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return render_notebook(self.report, (("Report", self.page), ("Package", self.package)))


class Run:
    """What was made of a recipe, and how more of it is made."""

    def __init__(self, recipe: Recipe, options: RunOptions, output: Path, events: Events, command: str) -> None:
        self.recipe, self.options, self.output, self.events, self.command = recipe, options, output, events, command
        self.store = output / "store"
        self.done: Done = {}
        self.rounds: tuple[Round, ...] = ()
        texts = [text.source for text in recipe.text.every]
        self._watched = Watched(*map(typed_path, (recipe.model.source, *texts)))

    def all(self) -> RunResult:
        """Every stage, in order.

        Raises:
            TrimlineError: a stage failed; the stages before it are kept.
        """
        # What is wrong with the steps, and what is not there, is said before anything is fetched or written.
        resolve_steps(self.recipe.prune)
        locate(self.recipe.model.source)
        demand_texts(self.recipe.text)
        self._demand_own()
        if (said := self.recipe.rounding()) is not None:
            self.events.note(said)
        with exclusive(self.store, self.events):
            for job in (*SHARED, *deciding(self.recipe), SETTLED, *curves(self.recipe), *examining(self.recipe, *LANES), REPORT, PACKAGE):
                self.do(job)
            report = Report.read(self.done[REPORT].folder / REPORT_FILE)
            self._show()
        return RunResult(self.output, {str(name): artefact for name, artefact in self.done.items()}, report)

    def do(self, job: Name, recipe: Recipe | None = None) -> None:
        """Makes what has this name, or skips it; checks, or loops, where the name is that of a check or a loop.

        Args:
            job: as ``trimline.stages.order`` gives them; what it needs was made before.
            recipe: in the place of the run's.
        """
        row, case = row_of(job), StageCase(recipe or self.recipe, job, self.done)
        if isinstance(row, Loop):
            self.rounds = row.work(self)
        elif isinstance(row, Check):
            row.work(self._inputs(row, case))
        elif isinstance(row, Stage) and row.wanted(case):
            self._make(row, case)

    def prune(self, steps: PruneSlice) -> None:
        """The plan, of these steps in the place of the recipe's."""
        self.do(PLAN, self.recipe.model_copy(update={"prune": steps}))

    def after_prune(self) -> None:
        """From the plan to the measured model, and the dense one beside it."""
        lanes = [lane for lane in LANES if lane != DENSE or evaluation_of(DENSE) not in self.done]  # by an earlier round
        for job in (*rebuilding(self.recipe), *(job for lane in lanes for job in judging(self.recipe, lane)), TIMINGS):
            self.do(job)

    def _make(self, row: Stage[Any], case: StageCase) -> None:
        inputs = self._inputs(row, case)
        depends = row.depends(case, inputs)

        def unchanged() -> None:
            if row.depends(case, inputs) != depends or self._source_moved(row, case):
                raise changed(self._watched.changed() or f"What {row.title(case.name)} is made from")

        self.done[case.name] = self._artefact(case.name, depends, lambda out: row.work(inputs, out), unchanged)
        if row.resumes:
            self._forget_states()

    def _source_moved(self, row: Stage[Any], case: StageCase) -> bool:
        """Whether the user's own folder, which stages read where it lies, is another one than the source's key says."""
        if SOURCE not in row.needs(case) or opened(self.done, SOURCE).is_relative_to(self.done[SOURCE].folder):
            return False
        source, of_source = stage_of(SOURCE), StageCase(self.recipe, SOURCE, {})
        return expected(self.store, SOURCE.stage, source.depends(of_source, self._inputs(source, of_source))).key != self.done[SOURCE].key

    def _artefact(self, name: Name, depends: dict[str, Any], work: Callable[[Path], None], unchanged: Unchanged) -> Artefact:
        return make_artefact(self.store, name.stage, depends, work, self.events, lane=name.about, unchanged=unchanged)

    def _inputs(self, row: StageRow[Any], case: StageCase) -> Inputs[Any]:
        return Inputs(
            slice=row.reads(case.recipe),
            artefacts=row.needs(case),
            options=self.options,
            events=self.events,
            name=case.name,
            command=self.command,
            rounds=self.rounds,
            timing_cache=self.store / KERNEL_TIMINGS,
        )

    def _forget_states(self) -> None:
        """Removes what killed recoveries left, of other recipes too: nobody else works in this store."""
        for left in self.store.glob(f"{WORK}recover-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _demand_own(self) -> None:
        """The output folder is a run's, or may become one: a model's folder would be written into, somebody's page replaced."""
        page = self.output / HTML
        others = [name for name in ("config.json", MANIFEST, GENAI_CONFIG, RECORD) if (self.output / name).exists()]
        others += [HTML] if page.exists() and not page.is_symlink() else []
        if others and not self.store.is_dir():
            raise TrimlineError(
                f"{self.output} is no run's folder: it holds {others[0]}.",
                "Name an output folder that is new or empty, or that of the run to go on with.",
            )

    def _show(self) -> None:
        """The folder to ship, and a link with a stable name to the report."""
        ship(self.done[PACKAGE].folder / SHIPPED, self.output / SHIPPED, self.store)
        target = self.done[REPORT].folder / HTML
        link, beside = self.output / HTML, self.output / f".{HTML}-{digest(str(target))[:8]}"
        beside.unlink(missing_ok=True)
        beside.symlink_to(target.relative_to(self.output))
        beside.replace(link)
