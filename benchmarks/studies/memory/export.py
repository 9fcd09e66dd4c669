"""What an export holds in memory, gate included: ``python -m benchmarks.studies.memory.export CHECKPOINT``.

In a process of its own, whose interpreter and libraries are counted apart. The unit is the weights in fp32, which is what
torch has to hold to be compared with. With ``--memory`` the weights stay in their files, and the bar is that budget.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.formulas.roofline import FP32
from benchmarks.machine.memory import AnonymousPeak, process_memory
from benchmarks.results.cells import mebibytes
from benchmarks.studies.memory.apart import apart, start
from benchmarks.studies.pages import fill, markdown_table
from exporters.folder import GATE
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.onnx.lowering.precision import check_budget
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.memory import parse_bytes
from pipeline.common.options import RunOptions

BAR = 2.5
PRECISIONS = {
    "fused": ("fp32", "fp16", "int8", "int4"),
    "portable": ("fp32", "fp16", "int8", "int4"),
    "gguf": ("fp32", "fp16"),
}  # of every lowering
DEFAULT = ("fused", "portable")
COLUMNS = ["lowering", "precision", "weights in fp32, MiB", "before, MiB", "peak, MiB", "(peak − before) / weights", "bar", "outcome"]
LIBRARIES = ("onnxruntime.quantization", "onnxruntime_genai.models", "transformers.models.llama.modeling_llama")


def measured(checkpoint: Path, lowering: str, precision: str, threads: int, memory: int | None) -> dict[str, Any]:
    """Bytes of this process: ``weights`` in fp32, ``before`` the export, at most during it (``peak``), and ``times`` = (peak − before) / weights.

    Where the export refuses to work within ``memory``, or its gate refuses the result, ``refused`` says so in place of the last two.
    """
    load_libraries()
    source = Checkpoint(checkpoint)
    weights = FP32 * source.geometry.total_parameters()
    before = process_memory()["anonymous"] or 0
    options = RunOptions(threads=threads, memory=memory)
    try:
        with tempfile.TemporaryDirectory() as folder, AnonymousPeak() as peak:
            out = Path(folder) / "out"
            out.mkdir()
            if lowering == "gguf":
                export_gguf(checkpoint, GgufSlice.model_validate({"precision": precision}), options, out, Events())
            else:
                recipe = ExportSlice.model_validate({"lowering": lowering, "precision": precision, "perplexity_bar": 1e6})
                check_budget(source, lowering, recipe.precision, options)
                export(checkpoint, recipe, options, out, Events())
            ratio = read_json(out / GATE).get("perplexity", {}).get("ratio")
    except TrimlineError as error:
        return {"weights": weights, "before": before, "refused": error.problem}
    most = peak.bytes or 0
    return {"weights": weights, "before": before, "peak": most, "times": (most - before) / weights, "perplexity_ratio": ratio}


def load_libraries() -> None:
    """All that an export runs in. torch's exporter brings in hundreds of modules when it is first used, so it is used on four numbers."""
    for name in LIBRARIES:
        importlib.import_module(name)
    with contextlib.redirect_stdout(sys.stderr):
        torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), dynamo=True, verbose=False)


def in_a_child(checkpoint: Path, lowering: str, precision: str, threads: int, memory: int | None = None) -> dict[str, Any]:
    """The same in a process of its own, which never held anything else."""
    asked = {"checkpoint": str(checkpoint), "lowering": lowering, "precision": precision, "threads": threads, "memory": memory}
    return apart("benchmarks.studies.memory.export", "peak", **asked)


def forms(lowerings: list[str], precisions: list[str]) -> list[tuple[str, str]]:
    """(lowering, precision) of every row, in the order that was asked for; a lowering's precisions are all by default.

    Raises:
        TrimlineError: a lowering that is not known, or a precision that none of these is written in.
    """
    if unknown := [name for name in lowerings if name not in PRECISIONS]:
        raise TrimlineError(f"There is no lowering {unknown[0]!r}.", f"Known are {', '.join(PRECISIONS)}.")
    known = {precision for name in lowerings for precision in PRECISIONS[name]}
    if unknown := [name for name in precisions if name not in known]:
        raise TrimlineError(f"Nothing is written in {unknown[0]!r} here.", f"Known are {', '.join(sorted(known))}.")
    return [(name, precision) for name in lowerings for precision in precisions or PRECISIONS[name] if precision in PRECISIONS[name]]


def row(lowering: str, precision: str, found: dict[str, Any], budget: int | None) -> list[str]:
    """Of the table: the bar is 2.5 times the weights, or the budget for all that the process holds."""
    bar = f"{BAR}" if budget is None else f"{mebibytes(budget)} MiB"
    start = [lowering, precision, mebibytes(found["weights"]), mebibytes(found["before"])]
    if "refused" in found:
        return [*start, "–", "–", bar, f"refused: {found['refused']}"]
    reached = found["times"] <= BAR if budget is None else found["peak"] <= budget
    return [*start, mebibytes(found["peak"]), f"{found['times']:.2f}", bar, "reached" if reached else "missed"]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder.")],
    lowering: Annotated[list[str] | None, typer.Option(help="fused, portable or gguf, again for more; default: the first two.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="Only these.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch and ONNX Runtime.")] = RunOptions().threads,
    memory: Annotated[str | None, typer.Option(help="A budget that is less than the model takes; the bar is then that.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Put the table into this page, at export-memory or, with a budget, export-mapped.")
    ] = None,
) -> None:
    """Print peaks of anonymous memory beside the bar of 2.5 times the weights, or beside the budget."""
    try:
        budget = None if memory is None else parse_bytes(memory)
        wanted = forms(lowering or list(DEFAULT), precision or [])
        Checkpoint(checkpoint)  # before any process is started
        rows = []
        for form in wanted:
            rows.append(row(*form, in_a_child(checkpoint, *form, threads, budget), budget))
            typer.echo(", ".join(rows[-1]), err=True)  # minutes may pass before the next
        table = markdown_table(COLUMNS, rows)
        typer.echo(table)
        if page is not None:
            fill(page, "export-memory" if budget is None else "export-mapped", table)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


def child(checkpoint: str, **asked: Any) -> dict[str, Any]:
    """One measurement."""
    return measured(Path(checkpoint), **asked)


if __name__ == "__main__":
    start(main, {"peak": child})
