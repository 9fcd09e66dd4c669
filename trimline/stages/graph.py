"""Which stage needs which artefact. The dense model runs beside the pruned one, through the same stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency.shapes import Form
from benchmarks.latency.stage import adopt, latency_table, setting_of
from benchmarks.machine.environment import fingerprint, versions
from benchmarks.runtimes.names import FORMS
from benchmarks.stage import benchmark
from deploy.package import PackageParts, package
from deploy.recipe import PackageSlice
from exporters.onnx.gate.evaluate import evaluate_graph
from exporters.onnx.stage import export
from exporters.onnx.tasks.harness import examine_graph
from exporters.tensorrt.builders import BUILDERS
from exporters.tensorrt.shapes import Request
from exporters.tensorrt.stage import QDQ, build
from pipeline.artefacts.artefact import WORK, Artefact, digest, exclusive, folder_digest, make_artefact, work_beside
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.harness.stage import depends_on, examine
from pipeline.evaluate.harness.tasks import check_tasks
from pipeline.evaluate.perplexity import RESULT, evaluate
from pipeline.prune.allocation.targets import Consumer
from pipeline.prune.measure import measure, measured_part
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.sharding import measure_part, statistics_part, why_whole
from pipeline.prune.stage import prune
from pipeline.prune.steps import check_steps
from pipeline.rebuild.stage import rebuild
from pipeline.recover.stage import recover, result_key
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source
from pipeline.sources.model import checkpoint_folder
from trimline.recipe import Recipe, recipe_text
from trimline.reporting import write_report
from trimline.reporting.data import ReportData, Role
from trimline.stages.collect import Lane, collect
from trimline.stages.keys import stage_code
from trimline.stages.preflight import preflight
from trimline.stages.rounds import Round, consumer_of, tile_of, timed_step, until_met

DENSE: Role = "dense"
PRUNED: Role = "pruned"
LANES = (DENSE, PRUNED)
REBUILT = "rebuilt"  # the pruned model before recovery; evaluated only
SHIPPED = "package"
Stage = tuple[str, ...]  # a method of Run, and its arguments
SHARED: tuple[Stage, ...] = (("source",), ("texts",))
# Methods that measure speed: nothing else may run beside them, and their keys depend on the machine.
TIMED = frozenset({"benchmark", "latency", "settle"})
TIMINGS = "timing.cache"  # of kernels, shared by all engines of one output folder


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
    report: ReportData

    @property
    def package(self) -> Path:
        """The folder to ship."""
        return self.folder / SHIPPED

    @property
    def page(self) -> Path:
        """The report to look at."""
        return self.folder / "report.html"


class Run:
    """One recipe in one output folder; every method is a stage that runs or is skipped."""

    shards = 1  # parts that the calibration windows are measured in

    def __init__(self, recipe: Recipe, options: RunOptions, output: Path, events: Events, command: str) -> None:
        self.recipe, self.options, self.output, self.events, self.command = recipe, options, output, events, command
        self.store = output / "store"
        self.done: dict[str, Artefact] = {}
        self.rounds: tuple[Round, ...] = ()

    def all(self) -> RunResult:
        """Every stage, in order.

        Raises:
            TrimlineError: a stage failed; the stages before it are kept.
        """
        check_steps(self.recipe.prune)
        with exclusive(self.store, self.events):
            for stage in (*SHARED, *self._deciding()):
                self.do(stage)
            self.settle()
            for stage in self._examining(*LANES):
                self.do(stage)
            report = self.report()
            self.package()
            self._show()
        return RunResult(self.output, self.done, report)

    def stages(self, *lanes: Role) -> Iterator[Stage]:
        """What makes and judges the models of some lanes, in order, after ``SHARED``; timing and what follows it stand apart.

        But for a target of time: whether it is met has to be measured, and decides whether it is gone through again. The
        first round's stages stand before that, since they may run beside others.
        """
        if PRUNED in lanes:
            yield from (*self._deciding(), ("prune",), *self._rebuilding())
        for lane in lanes:
            yield from self._judging(lane)
        if PRUNED in lanes and timed_step(self.recipe.prune) is not None:
            yield ("settle",)
        yield from self._examining(*lanes)

    def _deciding(self) -> Iterator[Stage]:
        """What stands before the plan, and is the same for every round towards a target."""
        yield ("preflight",)
        if timed_step(self.recipe.prune) is not None:
            yield ("latency",)
        if self.shards > 1 and not why_whole(self.recipe.prune):
            yield from (("statistics", str(shard)) for shard in range(self.shards))
        yield ("measure",)

    def _rebuilding(self) -> Iterator[Stage]:
        yield ("rebuild",)
        if self.recipe.recover:
            yield from (("evaluate", REBUILT), ("recover",))

    def _judging(self, lane: Role) -> Iterator[Stage]:
        yield from (("evaluate", lane), ("export", lane), ("evaluate_graph", lane))
        if self.recipe.build:
            yield from (("build", lane), ("evaluate_engine", lane))

    def _examining(self, *lanes: Role) -> Iterator[Stage]:
        """Tasks of the lm-eval harness, where the recipe names some: once the models stand, since they decide nothing."""
        if self.recipe.lm_eval:
            yield from (("examine", lane) for lane in lanes)
            yield from [("examine_graph",)] if PRUNED in lanes else []

    def do(self, stage: Stage) -> None:
        """Runs one of ``stages``, or skips it."""
        getattr(self, stage[0])(*stage[1:])

    def source(self) -> None:
        """The dense checkpoint."""
        named = self.recipe.model
        depends = {"model": model_source.identify(named), "dtype": named.dtype}
        self._make(
            "source",
            depends,
            stage_code("pipeline.sources.model", model_types=()),
            lambda out: model_source.source(named, self.options, out, self.events),
        )

    def texts(self) -> None:
        """The two texts."""
        named = self.recipe.text
        depends = {"texts": text_source.identify(named), "recipe": named.model_dump(mode="json")}
        self._make(
            "text",
            depends,
            stage_code("pipeline.sources.text", model_types=()),
            lambda out: text_source.texts(named, self.options, out, self.events),
        )

    def preflight(self) -> None:
        """Whether the shape profile can hold what the steps may produce, before anything is measured."""
        preflight(self.recipe, self.options, Checkpoint(self._dense))
        if self.recipe.lm_eval:
            check_tasks(self.recipe.lm_eval, self.events)

    def statistics(self, shard: str) -> None:
        """What one part of the calibration windows gives; ``measure`` merges the parts."""
        source, texts, slice_, part = self._folder("source"), self._folder("text"), self.recipe.prune, (int(shard), self.shards)
        depends = self._from("source", "text") | {
            "recipe": statistics_part(slice_),
            "part": list(part),
            "options": self.options.as_record(),
        }
        self._make(
            "statistics",
            depends,
            self._code("pipeline.prune.sharding", steps=slice_),
            lambda out: measure_part(source, texts, slice_, part, self.options, out, self.events),
            f"{shard} of {self.shards}",
        )

    def measure(self) -> None:
        """What the first shot measures, where it can be kept apart from the budget: another budget finds it there."""
        source, texts, slice_ = self._folder("source"), self._folder("text"), self.recipe.prune
        part = measured_part(slice_, Checkpoint(self._dense).geometry)
        parts = [name for name in self.done if name.startswith("statistics ")]
        folders = [self.done[name].folder for name in parts]
        if part is not None:
            depends = self._from("source", "text", *parts) | {"recipe": part, "options": self.options.as_record()}
            code = self._code("pipeline.prune.measure", steps=slice_)
            self._make("measure", depends, code, lambda out: measure(source, texts, slice_, self.options, out, self.events, folders))

    def latency(self) -> None:
        """How long blocks of every size take in the benchmark's runtime, where a target speaks of time."""
        form = Form(self.recipe.export, self.recipe.build, self.recipe.benchmark, self.options)
        tile = tile_of(self.recipe.prune)
        depends, known = setting_of(Checkpoint(self._dense).geometry, form, tile), self.recipe.benchmark.latency_table
        code = self._code("benchmarks.latency.stage")
        if known:
            depends |= {"table": folder_digest(Path(known)) if Path(known).is_dir() else None}
            self._make("latency", depends, code, lambda out: adopt(Path(known), self._dense, form, tile, out, self.events))
            return
        self._make("latency", depends, code, lambda out: latency_table(self._dense, form, tile, out, self.events))

    def prune(self, wanted: PruneSlice | None = None) -> None:
        """The plan: of the recipe's steps, or of ``wanted`` in their place."""
        source, texts, slice_ = self._folder("source"), self._folder("text"), wanted or self.recipe.prune
        measured = self._folder("measure") if "measure" in self.done else None
        depends = self._from("source", "text", *["measure"] * bool(measured)) | {
            "recipe": slice_.model_dump(mode="json"),
            "options": self.options.as_record(),
        }
        if any(step.target for step in slice_.steps):
            depends |= {"latency": self._from("latency") if "latency" in self.done else None, "precision": self.recipe.export.precision}
        self._make(
            "prune",
            depends,
            self._code("pipeline.prune.stage", steps=slice_),
            lambda out: prune(source, texts, slice_, self.options, out, self.events, measured, self._consumer()),
        )

    def settle(self) -> None:
        """From the plan to the measured models, and again where a target of time was missed."""
        self.rounds = until_met(self)

    def after_prune(self) -> None:
        """From the plan to the measured model, and the dense one beside it."""
        lanes = [lane for lane in LANES if lane != DENSE or f"export {DENSE}" not in self.done]  # by an earlier round
        for stage in (*self._rebuilding(), *(stage for lane in lanes for stage in self._judging(lane))):
            self.do(stage)
        self.benchmark()

    def rebuild(self) -> None:
        """The smaller checkpoint."""
        plan, slice_ = self._folder("prune"), self.recipe.rebuild
        depends = self._from("source", "prune") | {"recipe": slice_.model_dump(mode="json"), "options": self.options.as_record()}
        code = self._code("pipeline.rebuild.stage")
        self._make("rebuild", depends, code, lambda out: rebuild(self._dense, plan, slice_, self.options, out, self.events))

    def recover(self) -> None:
        """The smaller checkpoint, trained."""
        slice_, source, texts, rebuilt = self.recipe.recover, self._dense, self._folder("text"), self._folder("rebuild")
        assert slice_ is not None
        depends = self._from("source", "rebuild", "text") | result_key(slice_, self.options)
        self._make(
            "recover",
            depends,
            self._code("pipeline.recover.stage"),
            lambda out: recover(source, rebuilt, texts, slice_, self.options, out, work_beside(out), self.events),
        )
        self._forget_states()

    def _forget_states(self) -> None:
        """Removes what killed recoveries left, of other recipes too: nobody else works in this store."""
        for left in self.store.glob(f"{WORK}recover-*"):
            shutil.rmtree(left, ignore_errors=True)

    def evaluate(self, lane: str) -> None:
        """Perplexity of one lane."""
        texts, slice_ = self._folder("text"), self.recipe.evaluate
        depends = self._from(self._origin(lane), "text") | {"recipe": slice_.model_dump(mode="json"), "options": self.options.as_record()}
        checkpoint, code = self._checkpoint(lane), self._code("pipeline.evaluate.perplexity")
        self._make("evaluate", depends, code, lambda out: evaluate(checkpoint, texts, slice_, self.options, out, self.events), lane)

    def export(self, lane: Role) -> None:
        """ONNX of one lane."""
        slice_ = self.recipe.export
        depends = self._from(self._origin(lane)) | {"recipe": slice_.model_dump(mode="json"), "options": self.options.as_record()}
        checkpoint, code = self._checkpoint(lane), self._code("exporters.onnx.stage")
        self._make("export", depends, code, lambda out: export(checkpoint, slice_, self.options, out, self.events), lane)

    def evaluate_graph(self, lane: Role) -> None:
        """Perplexity of what was exported, where that is timed and not the checkpoint's to within a thousandth."""
        if self._evaluated(lane) == f"evaluate {_graph_of(lane)}":
            self._read_by_graph(lane, f"export {lane}", self._folder("export", lane), _graph_of(lane))

    def evaluate_engine(self, lane: Role) -> None:
        """Perplexity of the int8 graph that an engine was built from, where that engine is timed."""
        if self._evaluated(lane) == f"evaluate {_engine_of(lane)}":
            self._read_by_graph(lane, f"build {lane}", self._folder("build", lane) / QDQ, _engine_of(lane))

    def examine(self, lane: Role) -> None:
        """Tasks of the lm-eval harness, by one lane's checkpoint."""
        slice_, checkpoint = self.recipe.lm_eval, self._checkpoint(lane)
        assert slice_ is not None
        depends = self._from(self._origin(lane)) | depends_on(slice_) | {"options": self.options.as_record()}
        code = self._code("pipeline.evaluate.harness.stage")
        self._make("lm_eval", depends, code, lambda out: examine(checkpoint, slice_, self.options, out, self.events), lane)

    def examine_graph(self) -> None:
        """The same tasks, by the graph that is delivered."""
        slice_, folder = self.recipe.lm_eval, self._folder("export", PRUNED)
        assert slice_ is not None
        depends = self._from(f"export {PRUNED}") | depends_on(slice_) | {"options": self.options.as_record()}
        self._make(
            "lm_eval",
            depends,
            self._code("exporters.onnx.tasks.harness"),
            lambda out: examine_graph(folder, slice_, self.options, out, self.events),
            _graph_of(PRUNED),
        )

    def build(self, lane: Role) -> None:
        """TensorRT engine of one lane."""
        slice_, texts, onnx = self.recipe.build, self._folder("text"), self._folder("export", lane)
        assert slice_ is not None
        requests = [Request(workload.prompt, workload.output, workload.batch) for workload in self.recipe.benchmark.workloads]
        depends = self._from(f"export {lane}", *(["text"] if slice_.precision == "int8" else [])) | {
            "recipe": slice_.model_dump(mode="json"),
            "requests": [list(request) for request in requests],
            "machine": fingerprint(self.options.threads) if BUILDERS[slice_.builder].needs_gpu else None,
        }
        cache = self.store / TIMINGS
        self._make(
            "build",
            depends,
            self._code("exporters.tensorrt.stage"),
            lambda out: build(onnx, slice_, requests, self.options, out, self.events, texts=texts, timing_cache=cache),
            lane,
        )

    def benchmark(self) -> None:
        """Both lanes timed side by side."""
        slice_ = self.recipe.benchmark
        dense, pruned = self._timed(DENSE), self._timed(PRUNED)
        accuracy: dict[str, float] = {lane: read_json(self._evaluation(lane) / RESULT)["perplexity"] for lane in LANES}
        depends = self._from(*map(self._timed_stage, LANES), *map(self._evaluated, LANES)) | {
            "recipe": slice_.model_dump(mode="json"),
            "options": self.options.as_record(),
            "machine": fingerprint(self.options.threads),
            "accuracy": accuracy,
        }
        self._make(
            "benchmark",
            depends,
            self._code("benchmarks.stage"),
            lambda out: benchmark(dense, {PRUNED: pruned}, slice_, self.options, out, self.events, accuracy),
        )

    def report(self) -> ReportData:
        """The page, its Markdown and its data."""
        depends = self._from(*self.done) | {"recipe": self.recipe.model_dump(mode="json")}
        code = self._code("trimline.stages.collect", "trimline.reporting", steps=self.recipe.prune)
        self._make("report", depends, code, self._write_report)
        return ReportData.read(self._folder("report") / "report.json")

    def package(self) -> None:
        """The folder to ship."""
        needs = self._from("report", self._origin(PRUNED), f"export {PRUNED}", "benchmark", *[f"build {PRUNED}"] * bool(self.recipe.build))
        depends = needs | {"recipe": self.recipe.package.model_dump(mode="json")}
        parts = PackageParts(
            model=self._checkpoint(PRUNED),
            onnx=self._folder("export", PRUNED),
            plan=self._folder("prune"),
            report=self._folder("report"),
            recipe=recipe_text(self.recipe),
            command=self.command,
            options=self.options,
            engine=self._folder("build", PRUNED) if self.recipe.build else None,
        )
        # A level below the artefact: its records have no place among the files that a manifest sums.
        self._make(
            "package",
            depends,
            self._code("deploy.package", package=self.recipe.package),
            lambda out: package(parts, self.recipe.package, _new(out / SHIPPED), self.events),
        )

    def _write_report(self, out: Path) -> None:
        lanes: dict[Role, Lane] = {
            lane: Lane(self._checkpoint(lane), self._folder("export", lane), self._evaluation(lane)) for lane in LANES
        }
        texts, plan, timings = (self._folder(stage) for stage in ("text", "prune", "benchmark"))
        data = collect(self.recipe, self.command, texts, plan, lanes, timings, self.done, self.rounds, self._consumer())
        write_report(data, out)

    def _consumer(self) -> Consumer:
        return consumer_of(self.recipe, self.done["latency"].folder if "latency" in self.done else None)

    def _make(self, stage: str, depends: dict[str, Any], code: str, work: Any, lane: str = "") -> None:
        name = f"{stage} {lane}".strip()
        self.done[name] = make_artefact(self.store, stage, depends | {"code": code, "libraries": versions()}, work, self.events, lane=lane)

    def _code(self, *entries: str, steps: PruneSlice | None = None, package: PackageSlice | None = None) -> str:
        """Of a stage that knows the dense model; arguments as ``stage_code`` has them."""
        families = (self.family,) if "source" in self.done else None
        return stage_code(*entries, steps=steps, model_types=families, package=package)

    @property
    def family(self) -> str:
        """What transformers calls the dense model's family."""
        return Checkpoint(self._dense).geometry.family.model_type

    def _from(self, *names: str) -> dict[str, Any]:
        return {"inputs": {name: self.done[name].key for name in names}}

    def _folder(self, stage: str, lane: str = "") -> Path:
        return self.done[f"{stage} {lane}".strip()].folder

    def _read_by_graph(self, lane: Role, made_by: str, folder: Path, name: str) -> None:
        """The evaluation text, read in ONNX Runtime by a graph that a stage left in ``folder``."""
        checkpoint, texts, slice_ = self._checkpoint(lane), self._folder("text"), self.recipe.evaluate
        depends = self._from(made_by, "text") | {"recipe": slice_.model_dump(mode="json"), "options": self.options.as_record()}
        self._make(
            "evaluate",
            depends,
            self._code("exporters.onnx.gate.evaluate"),
            lambda out: evaluate_graph(checkpoint, folder, texts, slice_, self.options, out, self.events),
            name,
        )

    def _evaluated(self, lane: Role) -> str:
        """The stage that read the text in the form that is timed: accuracy and speed are of the same weights."""
        form, build_ = FORMS[self.recipe.benchmark.runtime], self.recipe.build
        if form == "engine" and build_ is not None and build_.precision == "int8":
            return f"evaluate {_engine_of(lane)}"
        exact = self.recipe.export.precision == "fp32"
        return f"evaluate {lane if form == 'checkpoint' or exact else _graph_of(lane)}"

    def _evaluation(self, lane: Role) -> Path:
        """The perplexity of what is timed."""
        return self.done[self._evaluated(lane)].folder

    def _timed_stage(self, lane: Role) -> str:
        """The stage whose result of a lane the benchmark's runtime opens."""
        form = FORMS[self.recipe.benchmark.runtime]
        return {"onnx": f"export {lane}", "engine": f"build {lane}", "checkpoint": self._origin(lane)}[form]

    def _timed(self, lane: Role) -> Path:
        if FORMS[self.recipe.benchmark.runtime] == "checkpoint":
            return self._checkpoint(lane)
        return self.done[self._timed_stage(lane)].folder

    def _origin(self, lane: str) -> str:
        """The stage that a lane's checkpoint comes from."""
        if lane == DENSE:
            return "source"
        return "recover" if self.recipe.recover and lane == PRUNED else "rebuild"

    @property
    def _dense(self) -> Path:
        return checkpoint_folder(self._folder("source"))

    def _checkpoint(self, lane: str) -> Path:
        return self._dense if lane == DENSE else self._folder(self._origin(lane))

    def _show(self) -> None:
        """Links with stable names to what people look for."""
        for name, target in ((SHIPPED, self._folder("package") / SHIPPED), ("report.html", self._folder("report") / "report.html")):
            link, beside = self.output / name, self.output / f".{name}-{digest(str(target))[:8]}"
            beside.unlink(missing_ok=True)
            beside.symlink_to(target.relative_to(self.output))
            beside.replace(link)


def _graph_of(lane: str) -> str:
    return f"{lane} graph"


def _engine_of(lane: str) -> str:
    return f"{lane} engine"


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
