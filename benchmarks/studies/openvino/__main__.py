"""``python -m benchmarks.studies.openvino``: the built-in model and half of its FFN, in OpenVINO and in onnxruntime-genai, in turns.

Each row is timed beside the same reference, the dense fused fp32 graph in onnxruntime-genai: two processes, a request of each in turn, every
prompt new, prefill of 512 tokens and the steps after it. Both are opened anew several times, from which the intervals come. Perplexity, of the dense
model, is on the text of the export's gate, as each runtime computes by itself. Exports are written here without their gates, which `trimline export` runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.formulas.statistics import Ratio, paired_ratio
from benchmarks.machine.environment import environment
from benchmarks.runtimes.names import Runtime
from benchmarks.studies.figures import DOCS, made
from benchmarks.studies.pages import fill, markdown_table
from benchmarks.timing.child import BenchmarkWorker
from exporters.folder import CONFIG, EXPORT
from exporters.onnx.files import save_graph
from exporters.onnx.gate.perplexity import fixed_windows, graph_losses
from exporters.onnx.lowering.fused import lower_fused
from exporters.onnx.lowering.last_position import keep_last_position
from exporters.onnx.running.genai import write_genai_config
from exporters.onnx.running.session import OnnxDecoder
from exporters.openvino.session import OpenvinoDecoder
from exporters.openvino.stage import write_openvino
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import perplexity_record
from pipeline.prune.recipe import Budget, PruneSlice, PruneStep
from pipeline.prune.stage import prune
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from pipeline.sources.companions import copy_companions
from pipeline.sources.model import checkpoint_folder, source
from pipeline.sources.recipe import ModelSlice, TextSlice
from pipeline.sources.text import texts

QUIET = Events()
PROMPT, OUTPUT = 512, 17
HALF = "half of the FFN"
MOST_OTHERS = 0.1  # cores that others may keep busy while a time means something


@dataclass(frozen=True)
class Row:
    """One row of the table: a model, the form it is written in, and what runs it."""

    model: str
    precision: str
    runtime: Runtime

    @property
    def name(self) -> str:
        return f"{self.model}, {self.precision}, {self.runtime}"


REFERENCE = Row("dense", "fp32", "onnxruntime_genai")
ROWS = (
    Row(HALF, "fp32", "onnxruntime_genai"),
    *(Row("dense", precision, "openvino_genai") for precision in ("fp32", "int8", "int4")),
    *(Row(HALF, precision, "openvino_genai") for precision in ("fp32", "int8", "int4")),
)


def models(folder: Path, options: RunOptions) -> dict[str, Path]:
    """The dense checkpoint, and one that lost half of every FFN by magnitude: sizes decide speed, and the method does not."""
    dense = checkpoint_folder(made(folder / "source", lambda out: source(ModelSlice(), options, out, QUIET)))
    text = made(folder / "text", lambda out: texts(TextSlice(), options, out, QUIET))
    wanted = PruneSlice(steps=(PruneStep(method="magnitude", budget={Space.FFN: Budget(remove=0.5)}),))
    plan = made(folder / "plan", lambda out: prune(dense, text, wanted, options, out, QUIET))
    shape = RebuildSlice(profile=Profile.FREE)
    return {"dense": dense, HALF: made(folder / "half", lambda out: rebuild(dense, plan, shape, options, out, QUIET))}


def written(row: Row, checkpoint: Path, folder: Path, options: RunOptions) -> Path:
    """The folder that a row's runtime opens; what is there is not made again."""
    place = folder / f"{row.runtime}-{row.model.replace(' ', '-')}-{row.precision}"
    if row.runtime == "onnxruntime_genai":
        return made(place, lambda out: _fused(checkpoint, out))
    recipe = ExportSlice.model_validate({"format": "openvino", "precision": row.precision})
    return made(place, lambda out: write_openvino(checkpoint, recipe, options, out, QUIET))


def _fused(checkpoint: Path, out: Path) -> None:
    held = Checkpoint(checkpoint)
    graph = lower_fused(held, "fp32", QUIET)
    keep_last_position(graph)
    save_graph(graph, out, "fused")
    copy_companions(checkpoint, out, QUIET)
    write_json(out / CONFIG, held.config)
    write_json(out / EXPORT, {"lowering": "fused", "precision": "fp32", "logits": "last"})
    write_genai_config(held, "fused", out)


def perplexity(row: Row, folder: Path, dense: Path, threads: int) -> float:
    """On the text of the gate, as the runtime computes by itself."""
    windows = fixed_windows(Checkpoint(dense), "fp32")
    if windows is None:
        raise TrimlineError(f"{dense} has no tokenizer.", "Give a model that has one.")
    opened = OnnxDecoder if row.runtime == "onnxruntime_genai" else OpenvinoDecoder
    return float(perplexity_record(graph_losses(opened(folder, threads, every_position=True), windows, QUIET))["perplexity"])


def side_by_side(rows: Mapping[Row, Path], vocab: int, threads: int, openings: int, rounds: int) -> dict[str, Any]:
    """Times of two rows in turns: per row and phase one number a round, and cores that others kept busy meanwhile."""
    found: dict[str, Any] = {row.name: {"prefill": [], "decode": [], "others": []} for row in rows}
    for opening in range(openings):
        workers = {row: BenchmarkWorker(row.name) for row in rows}
        try:
            for row, worker in workers.items():
                worker.ask("pin", threads=threads)
                worker.ask("load", folder=str(rows[row].resolve()), threads=threads, runtime=row.runtime)
                _once(worker, vocab, seed=10**6 + opening)
            for place in range(rounds):
                for row, worker in workers.items():
                    sample = _once(worker, vocab, seed=opening * rounds + place)
                    found[row.name]["prefill"].append(sample["prefill"])
                    found[row.name]["decode"].append(median(sample["gaps"]))
                    found[row.name]["others"].append(sample["others"])
        finally:
            for worker in workers.values():
                worker.__exit__()
    return found


def _once(worker: BenchmarkWorker, vocab: int, seed: int) -> dict[str, Any]:
    return worker.ask("run", prompt=PROMPT, output=OUTPUT, batch=1, vocab=vocab, seed=seed)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: how many times as fast as the reference, with 95 % intervals over openings, and perplexity over the dense checkpoint's."""
    lines = [[*_cells(REFERENCE), "1", "1", _cost(results, REFERENCE)]]
    for row in ROWS:
        timed = results["timed"].get(row.name)
        if timed is None and row.name not in results["perplexity"]:
            continue
        cells = ["not timed"] * 2
        if timed:
            pairs = ((timed[REFERENCE.name][phase], timed[row.name][phase]) for phase in ("prefill", "decode"))
            cells = [_shown(paired_ratio(first, second, each=results["rounds"])) for first, second in pairs]
        lines.append([*_cells(row), *cells, _cost(results, row)])
    return markdown_table(["Model", "Weights", "Runtime", "Prefill 512", "Decode", "Perplexity"], lines)


def _cells(row: Row) -> list[str]:
    return [row.model, row.precision, row.runtime.replace("_", "-")]


def _shown(ratio: Ratio) -> str:
    resolved = ratio.low > 1 or ratio.high < 1
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]{'' if resolved else ' (not resolved)'}"


def _cost(results: Mapping[str, Any], row: Row) -> str:
    value = results["perplexity"].get(row.name)
    return "" if value is None else f"{value:.2f}"


def sentence(results: Mapping[str, Any]) -> str:
    """What the machine was doing meanwhile."""
    others = [one for timed in results["timed"].values() for samples in timed.values() for one in samples["others"]]
    if not others:
        return "Nothing was timed."
    busy = median(others)
    machine = results["environment"]
    said = (
        f"{machine.get('cpu', 'a processor')}, {results['threads']} threads, {results['openings']} openings of {results['rounds']} rounds. "
    )
    said += f"Others kept {busy:.2f} cores busy meanwhile (median)"
    return said + (", so the machine was not quiet, and the ratios may change on one that is." if busy > MOST_OTHERS else ".")


def main(
    output: Annotated[Path, typer.Option(help="Folder for models and results; what is there is used.")] = Path("runs/openvino"),
    threads: Annotated[int, typer.Option(min=1)] = 2,
    openings: Annotated[int, typer.Option(min=2)] = 5,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    write: Annotated[bool, typer.Option(help="Write the table into docs/openvino.md.")] = False,
) -> None:
    """Measures every row and prints the table."""
    options = RunOptions(threads=threads)
    output.mkdir(parents=True, exist_ok=True)
    raw = output / "results.json"
    kept: dict[str, Any] = json.loads(raw.read_text(encoding="utf-8")) if raw.is_file() else {}
    results = {"perplexity": {}, "timed": {}} | kept
    results |= {"threads": threads, "openings": openings, "rounds": rounds, "environment": environment(threads)}
    checkpoints = models(output, options)
    vocab = Checkpoint(checkpoints["dense"]).geometry.vocab
    for row in (REFERENCE, *ROWS):
        folder = written(row, checkpoints[row.model], output, options)
        if row.model == "dense" and row.name not in results["perplexity"]:  # by magnitude alone half a model predicts nothing
            results["perplexity"][row.name] = perplexity(row, folder, checkpoints["dense"], threads)
            write_json(raw, results)
            print(row.name, f"perplexity {results['perplexity'][row.name]:.3f}", flush=True)
    for row in ROWS:
        if row.name not in results["timed"]:
            pair = {one: written(one, checkpoints[one.model], output, options) for one in (REFERENCE, row)}
            results["timed"][row.name] = side_by_side(pair, vocab, threads, openings, rounds)
            write_json(raw, results)
            print(row.name, "timed", flush=True)
    text = f"{table(results)}\n\n{sentence(results)}"
    print(text)
    if write:
        fill(DOCS / "openvino.md", "openvino", text)


if __name__ == "__main__":
    typer.run(main)
