"""What an export holds in memory, gate included: ``python -m benchmarks.export_memory CHECKPOINT``.

In a process of its own, whose interpreter and libraries are counted apart. The unit is the weights in fp32, which is what
torch has to hold to be compared with. With ``--memory`` the weights stay in their files, and the bar is that budget.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.memory import AnonymousPeak, last_line_of, process_memory
from benchmarks.pages import fill, markdown_table
from benchmarks.roofline import FP32
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoint import Checkpoint, read_json
from pipeline.events import Events
from pipeline.memory import parse_bytes
from pipeline.options import RunOptions

BAR = 2.5
PRECISIONS = ("fp32", "fp16", "int8", "int4")
LIBRARIES = ("onnxruntime.quantization", "onnxruntime_genai.models", "transformers.models.llama.modeling_llama", "torch.onnx", "onnxscript")


def measured(checkpoint: Path, lowering: str, precision: str, threads: int, memory: int | None) -> dict[str, Any]:
    """Bytes of this process: ``weights`` in fp32, ``before`` the export, at most during it (``peak``), and ``times`` = (peak − before) / weights."""
    for name in LIBRARIES:
        importlib.import_module(name)
    weights = FP32 * Checkpoint(checkpoint).geometry.total_parameters()
    before = process_memory()["anonymous"] or 0
    options = RunOptions(threads=threads, memory=memory)
    with tempfile.TemporaryDirectory() as folder, AnonymousPeak() as peak:
        out = Path(folder) / "out"
        out.mkdir()
        if lowering == "gguf":
            export_gguf(checkpoint, GgufSlice.model_validate({"precision": precision}), options, out, Events())
        else:
            recipe = ExportSlice.model_validate({"lowering": lowering, "precision": precision, "perplexity_bar": 1e6})
            export(checkpoint, recipe, options, out, Events())
        ratio = read_json(out / "gate.json").get("perplexity", {}).get("ratio")
    most = peak.bytes or 0
    return {"weights": weights, "before": before, "peak": most, "times": (most - before) / weights, "perplexity_ratio": ratio}


def in_a_child(checkpoint: Path, lowering: str, precision: str, threads: int, memory: int | None = None) -> dict[str, Any]:
    """The same in a process of its own, which never held anything else."""
    asked = [str(checkpoint), lowering, precision, str(threads), *([] if memory is None else [str(memory)])]
    return last_line_of("benchmarks.export_memory", asked)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder.")],
    lowering: Annotated[str, typer.Option(help="fused, portable or gguf.")] = "fused",
    precision: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch and ONNX Runtime.")] = RunOptions().threads,
    memory: Annotated[str | None, typer.Option(help="A budget that is less than the model takes; the bar is then that.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Put the table into this page, at export-memory or, with a budget, export-mapped.")
    ] = None,
) -> None:
    """Print peaks of anonymous memory beside the bar of 2.5 times the weights, or beside the budget."""
    rows = []
    budget = None if memory is None else parse_bytes(memory)
    for name in precision or PRECISIONS:
        found = in_a_child(checkpoint, lowering, name, threads, budget)
        sizes = (f"{found[key] / 2**20:.0f}" for key in ("weights", "before", "peak"))
        reached = found["times"] <= BAR if budget is None else found["peak"] <= budget
        bar = f"{BAR}" if budget is None else f"{budget / 2**20:.0f} MiB"
        rows.append([lowering, name, *sizes, f"{found['times']:.2f}", bar, "reached" if reached else "missed"])
    columns = ["lowering", "precision", "weights in fp32, MiB", "before, MiB", "peak, MiB", "(peak − before) / weights", "bar", "outcome"]
    table = markdown_table(columns, rows)
    typer.echo(table)
    if page is not None:
        fill(page, "export-memory" if budget is None else "export-mapped", table)


def child(checkpoint: Path, lowering: str, precision: str, threads: int, memory: int | None) -> None:
    """One measurement as a line of JSON."""
    print(json.dumps(measured(checkpoint, lowering, precision, threads, memory)))


if __name__ == "__main__":
    if len(sys.argv) in (5, 6) and not any(argument.startswith("-") for argument in sys.argv):
        child(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]) if len(sys.argv) == 6 else None)
    else:
        typer.run(main)
