"""Every stage as a row: what it needs, what its key covers, and its work.

To add a stage, write a row here and put it into ``TABLE``; say in ``trimline/stages/order.py`` when it comes. The run
(``run.py``), the sweep (``trimline/sweeps/tasks.py``) and the Python API (``alone.py``) take all they know of it from the row: keys,
what is skipped, what another machine would make, what it is called. A verb of the API that is a stage is that row, alone.
``Stage`` in ``stage.py`` explains the fields; a ``Check`` makes nothing, and a ``Loop`` goes through other rows again. Work of more
than one call stands in ``works.py``.

A stage of several forms has a row for each: the perplexity of a checkpoint, of a graph and of an engine is one stage, ``evaluate``.
"""

from __future__ import annotations

from typing import Any

from benchmarks.latency.stage import latency_table
from benchmarks.stage import benchmark
from deploy.package import package
from exporters.onnx.gate.evaluate import evaluate_graph
from exporters.onnx.stage import export
from exporters.onnx.tasks.harness import examine_graph
from exporters.openvino.evaluate import evaluate_openvino
from exporters.openvino.stage import export_openvino
from exporters.recipe import ExportSlice
from exporters.tensorrt.builders import BUILDERS
from exporters.tensorrt.stage import QDQ, build
from pipeline.curve.stage import curve
from pipeline.evaluate.harness.stage import depends_on, examine
from pipeline.evaluate.perplexity import evaluate
from pipeline.evaluate.recipe import EvaluateSlice, LmEvalSlice
from pipeline.prune.measure import measure
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.sharding import measure_part
from pipeline.prune.stage import prune
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover, result_key
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source
from pipeline.sources.recipe import ModelSlice, TextSlice
from trimline.recipe import Recipe
from trimline.reporting import write_report
from trimline.stages import works
from trimline.stages.collect import collect
from trimline.stages.lanes import evaluated, opened, origin, timed
from trimline.stages.names import DENSE, LANES, PLAN, PRUNED, REPORT, SMALLER, SOURCE, TEXT, TIMINGS, Name, engine_of, export_of
from trimline.stages.rounds import until_met
from trimline.stages.stage import Check, Loop, Stage, StageRow, always, present

_SOURCE: Stage[ModelSlice] = Stage(
    "source",
    by=model_source.source,
    reads=lambda recipe: recipe.model,
    counts=lambda inputs: {"model": model_source.identify(inputs.slice), "dtype": inputs.slice.dtype},
    options=False,
    families=False,
    work=lambda inputs, out: model_source.source(inputs.slice, inputs.options, out, inputs.events),
)
_TEXT: Stage[TextSlice] = Stage(
    "text",
    called="texts",
    by=text_source.texts,
    reads=lambda recipe: recipe.text,
    counts=lambda inputs: {"texts": text_source.identify(inputs.slice), "recipe": inputs.slice.model_dump(mode="json")},
    options=False,
    families=False,
    work=lambda inputs, out: text_source.texts(inputs.slice, inputs.options, out, inputs.events),
)
_PREFLIGHT: Check[Recipe] = Check("preflight", reads=lambda recipe: recipe, inputs=always(SOURCE), work=works.check)
_LATENCY: Stage[Recipe] = Stage(
    "latency",
    by=latency_table,
    reads=lambda recipe: recipe,
    beside=always(SOURCE),  # sizes count, and weights do not: dense kernels take as long for one value as for another
    counts=works.latency_key,
    options=False,
    work=works.time_blocks,
    timed=True,
)
_STATISTICS: Stage[PruneSlice] = Stage(
    "statistics",
    by=measure_part,
    reads=lambda recipe: recipe.prune,
    inputs=always(SOURCE, TEXT),
    counts=works.part_key,
    methods=True,
    work=works.measure_shard,
)
_MEASURE: Stage[PruneSlice] = Stage(
    "measure",
    by=measure,
    reads=lambda recipe: recipe.prune,
    inputs=lambda case: (SOURCE, TEXT, *case.made("statistics")),
    counts=lambda inputs: {"recipe": works.first_shot(inputs.slice, inputs.folder(SOURCE))},
    methods=True,
    wanted=lambda case: works.first_shot(case.recipe.prune, opened(case.done, SOURCE)) is not None,
    work=works.measure_once,
)
_PRUNE: Stage[Recipe] = Stage(
    "prune",
    by=prune,
    reads=lambda recipe: recipe,
    inputs=lambda case: (SOURCE, TEXT, *case.made("measure", "latency")),
    counts=works.plan_key,
    methods=True,
    work=works.decide,
)
_REBUILD: Stage[RebuildSlice] = Stage(
    "rebuild",
    by=rebuild,
    reads=lambda recipe: recipe.rebuild,
    inputs=always(SOURCE, PLAN),
    work=lambda inputs, out: rebuild(inputs.folder(SOURCE), inputs.folder(PLAN), inputs.slice, inputs.options, out, inputs.events),
)
_RECOVER: Stage[RecoverSlice] = Stage(
    "recover",
    by=recover,
    reads=lambda recipe: present(recipe.recover),
    inputs=always(SOURCE, SMALLER, TEXT),
    counts=lambda inputs: result_key(inputs.slice, inputs.options),
    options=False,
    work=works.train,
    resumes=True,
)
_EVALUATE: Stage[EvaluateSlice] = Stage(
    "evaluate",
    by=evaluate,
    reads=lambda recipe: recipe.evaluate,
    inputs=lambda case: (origin(case.recipe, case.lane), TEXT, *[SOURCE] * (case.lane != DENSE)),
    work=works.judge,
)
_EVALUATE_GRAPH: Stage[EvaluateSlice] = Stage(
    "evaluate",
    form="graph",
    called="evaluate_graph",
    by=(evaluate_graph, evaluate_openvino),
    reads=lambda recipe: recipe.evaluate,
    inputs=lambda case: (export_of(case.lane), TEXT),
    beside=lambda case: (origin(case.recipe, case.lane),),  # its tokenizer
    wanted=works.is_timed,
    work=lambda inputs, out: works.read_by_graph(inputs, inputs.folder(export_of(inputs.lane)), out),
)
_EVALUATE_ENGINE: Stage[EvaluateSlice] = Stage(
    "evaluate",
    form="engine",
    called="evaluate_engine",
    by=evaluate_graph,  # reads the int8 graph that the engine was built from
    reads=lambda recipe: recipe.evaluate,
    inputs=lambda case: (engine_of(case.lane), TEXT),
    beside=lambda case: (origin(case.recipe, case.lane),),
    wanted=works.is_timed,
    work=lambda inputs, out: works.read_by_graph(inputs, inputs.folder(engine_of(inputs.lane)) / QDQ, out),
)
_CURVE: Stage[Recipe] = Stage(
    "curve",
    by=curve,
    reads=lambda recipe: recipe,
    inputs=always(SOURCE, TEXT, PLAN),
    counts=lambda inputs: {"recipe": {name: getattr(inputs.slice, name).model_dump(mode="json") for name in ("curve", "evaluate")}},
    work=works.judge_counts,
)
_EXPORT: Stage[ExportSlice] = Stage(
    "export",
    by=(export, export_openvino),
    reads=lambda recipe: present(recipe.export),
    inputs=lambda case: (origin(case.recipe, case.lane),),
    work=works.write_graph,
)
_BUILD: Stage[works.BuildInput] = Stage(
    "build",
    by=build,
    reads=works.engine_recipe,
    inputs=lambda case: (export_of(case.lane), *([TEXT] if works.engine_recipe(case.recipe).recipe.precision == "int8" else [])),
    beside=always(TEXT),
    counts=works.engine_key,
    options=False,
    machine=lambda engine: BUILDERS[engine.recipe.builder].needs_gpu,
    work=works.compile_engine,
)
_LM_EVAL: Stage[LmEvalSlice] = Stage(
    "lm_eval",
    called="examine",
    by=examine,
    reads=lambda recipe: present(recipe.lm_eval),
    inputs=lambda case: (origin(case.recipe, case.lane),),
    counts=lambda inputs: depends_on(inputs.slice),
    work=lambda inputs, out: examine(inputs.checkpoint, inputs.slice, inputs.options, out, inputs.events),
)
_LM_EVAL_GRAPH: Stage[LmEvalSlice] = Stage(
    "lm_eval",
    form="graph",
    called="examine_graph",
    several=False,  # of the pruned model alone: its checkpoint was compared with the dense one's
    by=examine_graph,
    reads=lambda recipe: present(recipe.lm_eval),
    inputs=lambda case: (export_of(case.lane),),
    counts=lambda inputs: depends_on(inputs.slice),
    work=lambda inputs, out: examine_graph(inputs.folder(export_of(inputs.lane)), inputs.slice, inputs.options, out, inputs.events),
)
_SETTLE = Loop("settle", work=until_met, timed=True)
_BENCHMARK: Stage[Recipe] = Stage(
    "benchmark",
    by=benchmark,
    reads=lambda recipe: recipe,
    inputs=lambda case: (form(case.recipe, lane) for form in (timed, evaluated) for lane in LANES),
    counts=works.benchmark_key,
    machine=lambda recipe: True,
    work=works.time_both,
    timed=True,
)
_REPORT: Stage[Recipe] = Stage(
    "report",
    by=(collect, write_report),
    reads=lambda recipe: recipe,
    inputs=lambda case: case.done,
    options=False,
    work=works.draw,
)
_PACKAGE: Stage[Recipe] = Stage(
    "package",
    by=package,
    reads=lambda recipe: recipe,
    inputs=lambda case: (
        *(REPORT, origin(case.recipe, PRUNED), *[export_of(PRUNED)] * bool(case.recipe.export), TIMINGS),
        *[engine_of(PRUNED)] * bool(case.recipe.build),
    ),
    beside=always(PLAN),
    counts=lambda inputs: {"recipe": inputs.slice.package.model_dump(mode="json")},
    options=False,
    targets=True,
    work=works.ship,
)

TABLE: tuple[StageRow[Any], ...] = (
    _SOURCE, _TEXT, _PREFLIGHT, _LATENCY, _STATISTICS, _MEASURE, _PRUNE, _REBUILD, _RECOVER, _EVALUATE, _EVALUATE_GRAPH, _EVALUATE_ENGINE, _CURVE,
    _EXPORT, _BUILD, _LM_EVAL, _LM_EVAL_GRAPH, _SETTLE, _BENCHMARK, _REPORT, _PACKAGE,
)  # fmt: skip
_ROWS = {(row.name, row.form): row for row in TABLE}
TIMED = frozenset(row.name for row in TABLE if row.timed)


def row_of(name: Name) -> StageRow[Any]:
    """The row of the stage that makes an artefact, or checks, or goes through others."""
    return _ROWS[name.stage, name.lane.form if name.lane else ""]


def stage_of(name: Name) -> Stage[Any]:
    """The same, of a stage that makes an artefact."""
    row = row_of(name)
    assert isinstance(row, Stage)
    return row
