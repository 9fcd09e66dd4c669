"""What pruning costs, beside an earlier commit: ``python -m benchmarks.studies.cost --before 75026d1``.

Each system prunes the same model on the same windows by the code of both trees, in turn, a process each. Processor seconds come from the
processes' resource usage; loading and saving do not count. Each is divided by a plain forward of the same windows in the same process, so
what else the machine does cancels as far as it can.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

from benchmarks.machine.environment import processor
from benchmarks.studies.pages import fill, markdown_table
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_tokenizer
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source
from pipeline.sources.folder import CALIBRATION, EVALUATION
from pipeline.sources.recipe import CalibrationWindows, ModelSlice, TextSlice, TextSource
from pipeline.sources.windows import consecutive_windows, draw_windows

ROOT, WORKER = Path(__file__).parents[3], Path(__file__).with_name("worker.py")
BEFORE, NOW = "before", "now"
Record = dict[str, Any]
COLUMNS = (
    "system",
    "plain forwards, before",
    "now",
    "CPU s over before's",
    "bar",
    "outcome",
    "peak MiB, before",
    "now",
    "same units",
    "perplexity, before",
    "now",
)


def steps(remove: float) -> dict[str, tuple[Record, float]]:
    """Per system, the step, and what it may cost of what it cost before."""
    return {
        "trimline": ({"method": "trimline", "pooled": {"remove": remove}}, 0.55),
        "LLM Surgeon, a shot": ({"method": "llm_surgeon", "pooled": {"remove": remove}, "compensation": "least_squares"}, 0.7),
        "SparseGPT, 2:4": ({"method": "sparsegpt", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"}, 1.0),
        "CFSP, least squares": ({"method": "cfsp", "budget": {"ffn": {"remove": remove}}, "compensation": "least_squares"}, 1.0),
        "magnitude": ({"method": "magnitude", "budget": {"ffn": {"remove": remove}}}, 0.1),
    }


def tree_of(commit: str, out: Path) -> Path:
    """The sources of a commit, or the folder itself where one is named.

    Raises:
        TrimlineError: git does not know it.
    """
    if Path(commit).is_dir():
        return Path(commit).resolve()
    found = subprocess.run(["git", "archive", commit, "pipeline", "exporters", "benchmarks"], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        raise TrimlineError(f"There is no commit {commit} here.", "Name one that `git log` shows, or a folder.")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(out, filter="data")
    return out


def shortened(checkpoint: Path, blocks: int, out: Path) -> Path:
    """The checkpoint's first blocks, with its head: as costly per block, and faster to measure."""
    config = read_json(checkpoint / "config.json")
    tensors = load_file(checkpoint / "model.safetensors")
    inside = {name: name.split(".") for name in tensors}
    kept = {name: tensor for name, tensor in tensors.items() if "layers" not in inside[name] or int(inside[name][2]) < blocks}
    out.mkdir()
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    write_json(out / "config.json", config | {"num_hidden_layers": min(blocks, config["num_hidden_layers"])})
    return out


def run_in(tree: Path, asked: Record) -> Record:
    """What the worker says of one system in one tree.

    Raises:
        TrimlineError: it failed; with its last line.
    """
    surroundings = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(asked["threads"])}
    run = subprocess.run(
        [sys.executable, "-P", str(WORKER)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=tree,
        env=surroundings,
        check=False,
    )
    if run.returncode:
        raise TrimlineError(
            f"The measuring process failed: {(run.stderr.strip().splitlines() or ['no word'])[-1]}", "See its standard error."
        )
    found: Record = json.loads(run.stdout.splitlines()[-1])
    return found


def row(title: str, bar: float, found: dict[str, list[Record]]) -> list[str]:
    """Medians over rounds; the ratio is of forwards of the same round, so that both trees met the same machine."""
    passes = {tree: [one["seconds"] / one["forward"] for one in of] for tree, of in found.items()}
    ratio = statistics.median(now / before for now, before in zip(passes[NOW], passes[BEFORE], strict=True))
    peaks = {tree: max(one["peak"] for one in of) / 2**20 for tree, of in found.items()}
    last = {tree: of[-1] for tree, of in found.items()}
    return [
        title,
        *(f"{statistics.median(passes[tree]):.2f}" for tree in (BEFORE, NOW)),
        f"{ratio:.2f}",
        f"{bar:g}",
        "reached" if ratio <= bar else "missed",
        *(f"{peaks[tree]:.0f}" for tree in (BEFORE, NOW)),
        f"{same_units(last[BEFORE]['units'], last[NOW]['units']):.2%}".replace("%", " %"),
        *(perplexity(last[tree]["losses"]) for tree in (BEFORE, NOW)),
    ]


def same_units(before: Record, now: Record) -> float:
    """The part of the units that either keeps, that both keep."""
    pairs = [(set(before[name]), set(now[name])) for name in before]
    return sum(len(a & b) for a, b in pairs) / max(1, sum(len(a | b) for a, b in pairs))


def perplexity(losses: Sequence[float]) -> str:
    """Of windows of one length; a dash without any."""
    return f"{torch.tensor(losses, dtype=torch.float64).mean().exp().item():.3f}" if losses else "–"


def main(
    before: Annotated[str, typer.Option(help="Commit, or a folder with its sources.")] = "75026d1",
    model: Annotated[str, typer.Option(help="'default', a checkpoint folder, a .gguf file or a hub id.")] = "default",
    text: Annotated[str, typer.Option(help="Calibration text.")] = "default",
    blocks: Annotated[int, typer.Option(help="Of the model; 0: all.")] = 6,
    windows: Annotated[int, typer.Option(help="Of the text.")] = 4,
    window: Annotated[int, typer.Option(help="Tokens of each.")] = 512,
    evaluation: Annotated[int, typer.Option(help="Windows of the evaluation text for a perplexity; 0: none.")] = 0,
    remove: Annotated[float, typer.Option(help="Fraction that goes.")] = 0.3,
    rounds: Annotated[int, typer.Option(min=1, help="Of every system in both trees.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Systems whose title begins so.")] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the figures there, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at pruning-cost.")] = None,
) -> None:
    """Print what pruning costs in plain forwards, before and now."""
    chosen = {title: of for title, of in steps(remove).items() if not only or title.startswith(tuple(only))}
    try:
        with tempfile.TemporaryDirectory(prefix="trimline-cost-") as work:
            folder = Path(work)
            trees = {BEFORE: tree_of(before, folder / "tree"), NOW: ROOT}
            asked = _asked(model, text, CalibrationWindows(windows=windows, window=window), evaluation, threads, folder)
            if blocks:
                asked["model"] = str(shortened(Path(asked["model"]), blocks, folder / "shortened"))
            found: dict[str, dict[str, list[Record]]] = {title: {tree: [] for tree in trees} for title in chosen}
            for _ in range(rounds):
                for title, (step, _) in chosen.items():
                    for tree, place in trees.items():
                        found[title][tree].append(run_in(place, asked | {"step": step}))
                        typer.echo(f"{title}, {tree}: {found[title][tree][-1]['seconds']:.1f} CPU s", err=True)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    table = markdown_table(list(COLUMNS), [row(title, bar, found[title]) for title, (_, bar) in chosen.items()])
    said = f"{blocks or 'All'} blocks, {windows} windows of {window} tokens, fp32, {threads} thread(s), {remove:.0%} gone. {processor()}."
    typer.echo(document := f"{table}\n\n{said}")
    if page is not None:
        fill(page, "pruning-cost", document)
    if output is not None:
        output.write_text(json.dumps({"found": found, "said": said}) + "\n", encoding="utf-8")


def _asked(model: str, text: str, drawn: CalibrationWindows, evaluation: int, threads: int, folder: Path) -> Record:
    """What every process is told, but for the step."""
    quiet, options = Events(), RunOptions(threads=threads)
    source, texts = folder / "source", folder / "texts"
    for place in (source, texts):
        place.mkdir()
    model_source.source(ModelSlice(source=model), options, source, quiet)
    text_source.texts(TextSlice(calibration=TextSource(source=text)), options, texts, quiet)
    checkpoint = model_source.checkpoint_folder(source)
    tokenizer = load_tokenizer(checkpoint)
    windows = draw_windows(tokenizer, (texts / CALIBRATION).read_text(encoding="utf-8"), drawn)
    read = (texts / EVALUATION).read_text(encoding="utf-8")
    length = EvaluateSlice().window
    held = consecutive_windows(tokenizer, read, evaluation, length) if evaluation else torch.zeros(0, 0, dtype=torch.long)
    return {"model": str(checkpoint), "windows": windows.tolist(), "evaluation": held.tolist(), "threads": threads}


if __name__ == "__main__":
    typer.run(main)
