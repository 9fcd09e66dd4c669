"""What an export holds in memory, gate included: ``python -m benchmarks.export_memory CHECKPOINT``.

In a process of its own, whose interpreter and libraries are counted apart. The unit is the weights in fp32, which is what
torch has to hold to be compared with.
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
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoint import Checkpoint, read_json
from pipeline.events import Events
from pipeline.options import RunOptions

BAR = 2.5
PRECISIONS = ("fp32", "fp16", "int8", "int4")
LIBRARIES = ("onnxruntime.quantization", "onnxruntime_genai.models", "transformers.models.llama.modeling_llama", "torch.onnx", "onnxscript")


def measured(checkpoint: Path, lowering: str, precision: str, threads: int) -> dict[str, Any]:
    """Bytes of this process: ``weights`` in fp32, ``before`` the export, at most during it (``peak``), and ``times`` = (peak − before) / weights."""
    for name in LIBRARIES:
        importlib.import_module(name)
    weights = FP32 * Checkpoint(checkpoint).geometry.total_parameters()
    before = process_memory()["anonymous"] or 0
    recipe = ExportSlice.model_validate({"lowering": lowering, "precision": precision, "perplexity_bar": 1e6})
    with tempfile.TemporaryDirectory() as folder, AnonymousPeak() as peak:
        export(checkpoint, recipe, RunOptions(threads=threads), Path(folder), Events())
        ratio = read_json(Path(folder) / "gate.json")["perplexity"].get("ratio")
    most = peak.bytes or 0
    return {"weights": weights, "before": before, "peak": most, "times": (most - before) / weights, "perplexity_ratio": ratio}


def in_a_child(checkpoint: Path, lowering: str, precision: str, threads: int) -> dict[str, Any]:
    """The same in a process of its own, which never held anything else."""
    asked = [str(checkpoint), lowering, precision, str(threads)]
    return last_line_of("benchmarks.export_memory", asked)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder.")],
    lowering: Annotated[str, typer.Option(help="fused or portable.")] = "fused",
    precision: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch and ONNX Runtime.")] = RunOptions().threads,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at export-memory.")] = None,
) -> None:
    """Print peaks of anonymous memory beside the bar of 2.5 times the weights."""
    rows = []
    for name in precision or PRECISIONS:
        found = in_a_child(checkpoint, lowering, name, threads)
        sizes = (f"{found[key] / 2**20:.0f}" for key in ("weights", "before", "peak"))
        rows.append([lowering, name, *sizes, f"{found['times']:.2f}", f"{BAR}", "reached" if found["times"] <= BAR else "missed"])
    columns = ["lowering", "precision", "weights in fp32, MiB", "before, MiB", "peak, MiB", "(peak − before) / weights", "bar", "outcome"]
    table = markdown_table(columns, rows)
    typer.echo(table)
    if page is not None:
        fill(page, "export-memory", table)


def child(checkpoint: Path, lowering: str, precision: str, threads: int) -> None:
    """One measurement as a line of JSON."""
    print(json.dumps(measured(checkpoint, lowering, precision, threads)))


if __name__ == "__main__":
    if len(sys.argv) == 5 and not sys.argv[1].startswith("-"):
        child(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        typer.run(main)
