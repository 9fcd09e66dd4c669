"""The page of the docs that is nearest to an error: by the room that raised it."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from pipeline.common.errors import TrimlineError

# Room, or module, to the page that says what it expects; the longest name that fits counts.
PAGES = {
    "trimline.recipe": "recipe",
    "trimline.starting": "your-own-model",
    "trimline.sweeps": "sweep",
    "trimline.comparisons": "sweep",
    "trimline.stages.rounds": "targets",
    "pipeline.sources": "your-own-model",
    "pipeline.checkpoints": "your-own-model",
    "pipeline.architecture.families": "add-an-architecture",
    "pipeline.prune": "recipe",
    "pipeline.prune.allocation.targets": "targets",
    "pipeline.prune.allocation.targeted": "targets",
    "pipeline.rebuild.profiles": "shape-profiles",
    "pipeline.rebuild.gguf_form": "gguf",
    "pipeline.recover": "recovery",
    "pipeline.evaluate.harness": "lm-eval",
    "exporters.onnx.lowering.precision": "precisions",
    "exporters.gguf": "gguf",
    "exporters.openvino": "openvino",
    "exporters.tensorrt": "tensorrt",
    "benchmarks": "benchmarking",
    "benchmarks.latency": "targets",
    "deploy.targets": "deploy",
}


def nearest_page(error: BaseException) -> str | None:
    """``docs/targets.md``: of the innermost room on the way to the error that has a page; None where it names one itself, or none fits."""
    if not isinstance(error, TrimlineError) or "docs/" in str(error):
        return None
    found = [page for module in modules(error.__traceback__) if (page := page_of(module))]
    return f"docs/{found[-1]}.md" if found else None


def page_of(module: str) -> str | None:
    """The page of a module's room."""
    rooms = [room for room in PAGES if f"{module}.".startswith(f"{room}.")]
    return PAGES[max(rooms, key=len)] if rooms else None


def modules(trace: TracebackType | None) -> Iterator[str]:
    """Names of the modules that an error came through, from the outermost."""
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
