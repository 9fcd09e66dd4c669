"""README's first table, realised gain, CFSP's cost and variants: ``python -m benchmarks.studies.figures`` (``make bench``), about an hour.

Needs a finished quickstart run for README's table (``make demo``), and two texts for the perplexities; the built-in
halves serve, the published figures are on WikiText-2 (validation to calibrate, test to evaluate).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.document import PairedComparison, Results, read_file
from benchmarks.results.markdown import machine
from benchmarks.stage import measure
from benchmarks.studies.cfsp import cost as cfsp_cost
from benchmarks.studies.cfsp import variants as cfsp_variants
from benchmarks.studies.pages import fill
from benchmarks.studies.realised_gain import BARS, markdown_rows
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.artefacts.artefact import whole_folder
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.recipe import Budget, PruneSlice, PruneStep
from pipeline.prune.stage import prune
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from pipeline.sources.model import checkpoint_folder, source
from pipeline.sources.recipe import CalibrationWindows, ModelSlice, TextSlice
from pipeline.sources.text import texts

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
REMOVE = {"30 % of the FFN": 0.3, "50 % of the FFN": 0.5}
QUIET = Events()


def checkpoints(folder: Path, options: RunOptions) -> dict[str, Path]:
    """The dense default model, and CFSP with least squares at each budget; what is there is not made again."""
    model = checkpoint_folder(made(folder / "source", lambda out: source(ModelSlice(), options, out, QUIET)))
    text = made(folder / "text", lambda out: texts(TextSlice(), options, out, QUIET))
    return {"dense": model} | {name: _smaller(folder, model, text, remove, options) for name, remove in REMOVE.items()}


def prepare(folder: Path, options: RunOptions) -> tuple[Path, dict[str, Path]]:
    """The dense checkpoint, and ONNX of every checkpoint by name."""
    models = checkpoints(folder, options)
    suffix = {name: str(remove) for name, remove in REMOVE.items()} | {"dense": "dense"}

    def exported(name: str) -> Path:
        return made(folder / f"onnx-{suffix[name]}", lambda out: export(models[name], ExportSlice(), options, out, QUIET))

    return models["dense"], {name: exported(name) for name in models}


def _smaller(folder: Path, model: Path, text: Path, remove: float, options: RunOptions) -> Path:
    step = PruneStep(budget={Space.FFN: Budget(remove=remove)}, compensation="least_squares")
    wanted = PruneSlice(calibration=CalibrationWindows(windows=32, window=512), steps=(step,))
    shape = RebuildSlice(profile=Profile.DECILM)
    plan = made(folder / f"plan-{remove}", lambda out: prune(model, text, wanted, options, out, QUIET))
    return made(folder / f"model-{remove}", lambda out: rebuild(model, plan, shape, options, out, QUIET))


def gains(folders: dict[str, Path], options: RunOptions, output: Path, rounds: int, most_seconds: float) -> None:
    """Realised gain of prefill and decode at each budget, into docs/results.md; a run for each workload."""
    smaller = {name: folder for name, folder in folders.items() if name != "dense"}
    tables: list[PairedComparison] = []
    surroundings = ""
    for workload in BenchmarkSlice().workloads:
        raw = output / f"gain-{workload.prompt}-{workload.output}.json"
        if not raw.exists():
            recipe = BenchmarkSlice(workloads=(workload,), rounds=rounds, most_seconds=most_seconds)
            measure(folders["dense"], smaller, recipe, options, QUIET).write(raw)
        found = read_file(raw, Results)
        tables += [row for row in found.comparisons if (row.workload, row.phase) in BARS and row.workload == workload.name]
        surroundings = machine(found)
    fill(DOCS / "results.md", "realised-gain", markdown_rows(tables) + "\n\n" + surroundings)


def quickstart_table(run: Path) -> str:
    """The table of a finished run's report.

    Raises:
        TrimlineError: there is no such run.
    """
    report = run / "package" / "report.md"
    if not report.is_file():
        raise TrimlineError(f"{run} holds no finished run.", "Run `make demo` first.")
    lines = report.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return "\n".join(lines[start:end])


def main(
    output: Annotated[Path, typer.Option(help="Folder for models and raw figures; what is there is not measured again.")] = Path(
        "runs/figures"
    ),
    quickstart: Annotated[Path, typer.Option(help="A finished quickstart run.")] = Path("runs/quickstart"),
    calibration: Annotated[str, typer.Option(help="Text, for the perplexities.")] = "default",
    evaluation: Annotated[str, typer.Option(help="Another text.")] = "default",
    rounds: Annotated[int, typer.Option(help="Of the speed comparison.")] = 40,
    most_seconds: Annotated[float, typer.Option(help="Of the speed comparison, per workload.")] = 400.0,
    part: Annotated[list[str] | None, typer.Option(help="Only these: readme, gain, cost, variants.")] = None,
) -> None:
    """Measure, and write the figures into README and docs."""
    parts, options = set(part or ("readme", "gain", "cost", "variants")), RunOptions()
    output.mkdir(parents=True, exist_ok=True)
    try:
        if "readme" in parts:
            fill(README, "quickstart", quickstart_table(quickstart))
        model, folders = prepare(output, options)
        if "gain" in parts:
            gains(folders, options, output, rounds, most_seconds)
        if "cost" in parts:
            cfsp_cost.main(model, threads=options.threads, output=output / "cost.json", page=DOCS / "cfsp.md")
        if "variants" in parts:
            cfsp_variants.main(model, calibration, evaluation, output=output / "variants.json", page=DOCS / "cfsp.md")
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


def made(folder: Path, work: Callable[[Path], None]) -> Path:
    """A folder that is there, or is made now, whole or not at all."""
    if not folder.exists():
        with whole_folder(folder) as out:
            work(out)
    return folder


if __name__ == "__main__":
    typer.run(main)
