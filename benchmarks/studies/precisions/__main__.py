"""``python -m benchmarks.studies.precisions``: fewer bits, on the built-in model, side by side in interleaved rounds.

Three questions. Is our graph as fast as the one that onnxruntime-genai's own builder writes, of the same shape and
precision? Does a pruned model in 4 bits gain over a dense one in 4 bits what the removed weights allow? And what does prefill
gain where the output head reads one position? Beside every speed stands the perplexity on the text of the export gate.
``--runtime onnxruntime_genai`` times the same folders in that library's own generator; llama.cpp's file is always timed in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.recipe import LEAST_ROUNDS, BenchmarkSlice
from benchmarks.results.document import read_file
from benchmarks.runtimes.llama_cpp import LlamaDecoder, has_llama_cpp
from benchmarks.runtimes.names import Runtime
from benchmarks.stage import measure
from benchmarks.studies.figures import DOCS, checkpoints, made
from benchmarks.studies.pages import fill
from benchmarks.studies.precisions.llama_folder import llama_folder
from benchmarks.studies.precisions.profiled import allowed_by_time, prompt_profile, shares
from benchmarks.studies.precisions.stock_builder import stock_graph
from benchmarks.studies.precisions.tables import ALL, BUILDER, LLAMA, OURS, PROMPT, WORKLOADS, PrecisionResults, document
from exporters.folder import GATE
from exporters.onnx.gate.perplexity import fixed_windows, graph_losses
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice, Precision
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import perplexity_record
from pipeline.sources.model import default_gguf

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
PLACES = {"onnxruntime": "precisions", "onnxruntime_genai": "precisions-genai"}  # of the page
QUIET = Events()
NO_BAR = 1e6  # a benchmark shows what a precision costs; it is the export's gate that refuses


def forms(models: Mapping[str, Path], precision: Precision, folder: Path, options: RunOptions) -> dict[str, Path]:
    """Folders to time against each other, the builder's own graph first; what is there is not made again.

    Args:
        models: checkpoints by name, ``dense`` among them; the others are measured in int4 only.
    """
    dense = models["dense"]

    def ours(checkpoint: Path, logits: str, name: str) -> Path:
        recipe = ExportSlice.model_validate({"precision": precision, "logits": logits, "perplexity_bar": NO_BAR})
        return made(folder / f"{precision}-{name}", lambda out: export(checkpoint, recipe, options, out, QUIET))

    found = {BUILDER: made(folder / f"{precision}-builder", lambda out: stock_graph(dense, precision, out))}
    found |= {OURS: ours(dense, "last", "dense"), ALL: ours(dense, "all", "dense-all")}
    if precision == "int4":
        found |= {
            name: ours(path, "last", name.replace(" ", "-").replace("%", "percent")) for name, path in models.items() if name != "dense"
        }
        if has_llama_cpp():
            found[LLAMA] = made(folder / "llama-cpp", lambda out: llama_folder(default_gguf(), dense, out))
    return found


def perplexities(found: Mapping[str, Path], dense: Path, options: RunOptions) -> dict[str, float]:
    """Of every form on the text of the export gate: of a graph in ONNX Runtime, whose session onnxruntime-genai opens too."""
    windows = fixed_windows(Checkpoint(dense), "fp32")
    if windows is None:
        raise TrimlineError(f"{dense} has no tokenizer.", "Give a model that has one.")
    values = {}
    for name, folder in found.items():
        gate = folder / GATE
        if gate.is_file():
            values[name] = read_json(gate)["perplexity"]["graph"]
        elif name == LLAMA:
            values[name] = perplexity_record(LlamaDecoder(folder, options.threads, every_position=True).losses(windows))["perplexity"]
        else:
            values[name] = perplexity_record(graph_losses(OnnxDecoder(folder, options.threads), windows, QUIET))["perplexity"]
    return values


def measured(
    models: Mapping[str, Path], precision: Precision, folder: Path, recipe: BenchmarkSlice, options: RunOptions
) -> PrecisionResults:
    """One precision, ``dense`` being the builder's graph."""
    found = forms(models, precision, folder, options)
    values = perplexities(found, models["dense"], options)
    results = measure(found[BUILDER], {name: path for name, path in found.items() if name != BUILDER}, recipe, options, QUIET)
    record = results.as_record() | {"precision": precision, "perplexities": values}
    if precision == "int4" and PROMPT in recipe.workloads:
        record |= {"profile": profiled(models, found[BUILDER], options)}
    return PrecisionResults.model_validate(record)


def profiled(models: Mapping[str, Path], builder: Path, options: RunOptions) -> dict[str, Any]:
    """Where the prompt pass of the builder's graph spends its time, and what each smaller model can save of it."""
    dense = Checkpoint(models["dense"]).geometry
    seconds = prompt_profile(builder, PROMPT.prompt, dense.vocab, options.threads)
    allowed = {
        name: allowed_by_time(seconds, dense, Checkpoint(path).geometry, PROMPT.prompt) for name, path in models.items() if name != "dense"
    }
    return {"shares": shares(seconds), "allowed": allowed}


def raw_name(precision: str, runtime: Runtime, metric: str | None = None) -> str:
    """File of one precision's raw figures; each runtime and metric has its own, since what is there is not measured again."""
    return "-".join(["precision", precision, *([] if runtime == "onnxruntime" else [runtime]), *([metric] if metric else [])]) + ".json"


def main(
    output: Annotated[Path, typer.Option(help="Folder for models and raw figures; what is there is not made again.")] = Path(
        "runs/figures"
    ),
    rounds: Annotated[int, typer.Option(min=2, help=f"Interleaved; fewer than {LEAST_ROUNDS} resolve nothing.")] = 40,
    most_seconds: Annotated[float, typer.Option(help="Of timing, per precision.")] = 600.0,
    precision: Annotated[list[str] | None, typer.Option(help="Only these: fp32, int8, int4.")] = None,
    runtime: Annotated[
        Literal["onnxruntime", "onnxruntime_genai"], typer.Option(help="What every graph is timed in; the second is the builder's own.")
    ] = "onnxruntime",
    metric: Annotated[
        Literal["prefill", "decode"] | None, typer.Option(help="Only this, in as many more openings; printed, since the page holds both.")
    ] = None,
    threads: Annotated[int, typer.Option(help="0: all that this process may use.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Fill in the place called precisions, or precisions-genai.")] = DOCS / "results.md",
    fill_page: Annotated[bool, typer.Option("--fill/--print-only", help="Write into the page, or only print.")] = True,
) -> None:
    """Measure, print, and write the tables into docs/results.md."""
    options = RunOptions(threads=threads) if threads else RunOptions()
    workloads = tuple(WORKLOADS.values()) if metric is None else (WORKLOADS[metric],)
    recipe = BenchmarkSlice(workloads=workloads, rounds=rounds, most_seconds=most_seconds, runtime=runtime)
    output.mkdir(parents=True, exist_ok=True)
    try:
        if unknown := [name for name in precision or () if name not in PRECISIONS]:
            raise TrimlineError(f"The precision {unknown[0]!r} is not compared here.", f"Known are {', '.join(PRECISIONS)}.")
        models, results = checkpoints(output, options), []
        for name in [wanted for wanted in PRECISIONS if precision is None or wanted in precision]:
            raw = output / raw_name(name, runtime, metric)
            if not raw.exists():
                measured(models, name, output, recipe, options).write(raw)
            results.append(read_file(raw, PrecisionResults))
        text = document(results)
        if page is not None and fill_page and metric is None:
            fill(page, PLACES[runtime], text)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
