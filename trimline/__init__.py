"""Trimline makes a decoder-only language model smaller, proves that it computes the right thing, and measures that it is faster.

>>> import trimline
>>> result = trimline.run("recipes/quickstart.yaml", "runs/quickstart")  # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trimline.own_packages import demand_ours

if TYPE_CHECKING:
    from benchmarks.recipe import BenchmarkSlice
    from exporters.gguf.recipe import GgufSlice
    from exporters.recipe import BuildSlice, ExportSlice
    from pipeline.common.errors import GateError, TrimlineError
    from pipeline.common.events import Event, Events
    from pipeline.common.options import RunOptions
    from pipeline.evaluate.recipe import LmEvalSlice
    from pipeline.plan.plan import Plan
    from trimline.api import (
        Perplexity,
        bench,
        build,
        compare,
        evaluate,
        evaluate_tasks,
        export,
        export_gguf,
        new,
        package,
        prune,
        rebuild,
        recover,
        report,
        run,
        sweep,
    )
    from trimline.inspect import inspect_folder
    from trimline.recipe import Recipe, read_recipe
    from trimline.reporting.notebook import Report
    from trimline.stages.run import RunResult
    from trimline.starting.new import NewRecipe

_PLACES = {
    "trimline.api": (
        "Perplexity",
        "bench",
        "build",
        "compare",
        "evaluate",
        "evaluate_tasks",
        "export",
        "export_gguf",
        "new",
        "package",
        "prune",
        "rebuild",
        "recover",
        "report",
        "run",
        "sweep",
    ),  # fmt: skip
    "trimline.reporting.notebook": ("Report",),
    "trimline.stages.run": ("RunResult",),
    "trimline.starting.new": ("NewRecipe",),
    "trimline.inspect": ("inspect_folder",),
    "trimline.recipe": ("Recipe", "read_recipe"),
    "pipeline.common.options": ("RunOptions",),
    "pipeline.plan.plan": ("Plan",),
    "pipeline.evaluate.recipe": ("LmEvalSlice",),
    "exporters.recipe": ("BuildSlice", "ExportSlice"),
    "exporters.gguf.recipe": ("GgufSlice",),
    "benchmarks.recipe": ("BenchmarkSlice",),
    "pipeline.common.events": ("Event", "Events"),
    "pipeline.common.errors": ("GateError", "TrimlineError"),
}
demand_ours()
_HOME = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "BenchmarkSlice",
    "BuildSlice",
    "Event",
    "Events",
    "ExportSlice",
    "GateError",
    "GgufSlice",
    "LmEvalSlice",
    "NewRecipe",
    "Perplexity",
    "Plan",
    "Recipe",
    "Report",
    "RunOptions",
    "RunResult",
    "TrimlineError",
    "bench",
    "build",
    "compare",
    "evaluate",
    "evaluate_tasks",
    "export",
    "export_gguf",
    "inspect_folder",
    "new",
    "package",
    "prune",
    "read_recipe",
    "rebuild",
    "recover",
    "report",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: `trimline --help` should not wait for torch.
    if name in _HOME:
        demand_ours()  # once more: Python's path may have grown
        with warnings.catch_warnings():
            # tqdm, which libraries import, says so in every kernel without widgets; no bar of ours needs them.
            warnings.filterwarnings("ignore", "IProgress not found")
            return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'trimline' has no attribute {name!r}")
