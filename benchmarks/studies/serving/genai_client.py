"""What an independent client sees: ``python -m benchmarks.studies.serving.genai_client DENSE SMALLER…``, exported folders or packages.

onnxruntime-genai generates in processes that hold nothing of Trimline's: neither its session nor its timing. Rounds are
interleaved, dense runs a second time as control, and a speed that was asked for is judged as the benchmark's own are. Runs at
several hours count together, since the ratio of two models drifts by some per cent with what else the machine's owner runs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.formulas.statistics import Ratio, by_opening, control_holds, pooled_ratio
from benchmarks.machine.environment import commit, environment, fingerprint, processor, software
from benchmarks.machine.pinning import pin
from benchmarks.recipe import LEAST_ROUNDS, PHASES
from benchmarks.results.cells import interval, rounds_of
from benchmarks.results.target import Judgement
from benchmarks.studies.pages import demand_folder, fill, markdown_table
from benchmarks.timing.child import BenchmarkWorker
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.artefacts.artefact import digest, file_digest
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions

CONFIG = "genai_config.json"
GRAPH = "model.onnx*"
ROUNDS_PER_OPENING = 3  # then every model is opened anew, since where memory lies changes its speed
Seconds = dict[str, dict[str, list[float]]]  # phase, then model


def measured(folders: Mapping[str, Path], prompt: int, output: int, rounds: int, threads: int, seed: int = 0) -> Seconds:
    """Seconds per phase, model and round; ``dense`` is among the folders and is timed a second time.

    Every process has the same ``threads`` cores, and as many threads.

    Raises:
        TrimlineError: onnxruntime-genai cannot open one, or a process fails.
    """
    chance = random.Random(seed)
    named = {**folders, CONTROL: folders[DENSE]}
    vocabulary = read_json(folders[DENSE] / CONFIG)["model"]["vocab_size"]
    found: Seconds = {phase: {name: [] for name in named} for phase in PHASES}
    for first in range(0, rounds, ROUNDS_PER_OPENING):
        # In processes of their own: one that opens a model again is given the memory back that it just let go of.
        with ExitStack() as running:
            clients = {
                name: running.enter_context(BenchmarkWorker(name, module="benchmarks.studies.serving.genai_worker"))
                for name in _shuffled(named, chance)
            }
            request = {"vocabulary": vocabulary, "prompt": prompt, "output": output, "seed": chance.getrandbits(31)}
            for name, client in clients.items():
                pin(threads, client.pid)
                client.ask("open", folder=str(named[name].resolve()), threads=threads)
                client.ask("run", **request)  # warm-up
            for _ in range(min(ROUNDS_PER_OPENING, rounds - first)):
                request["seed"] = chance.getrandbits(31)
                for name in _shuffled(named, chance):
                    reply = clients[name].ask("run", **request)
                    for phase in PHASES:
                        found[phase][name].append(reply[phase])
    return found


def _shuffled(named: Mapping[str, Path], chance: random.Random) -> list[str]:
    return chance.sample(list(named), len(named))


@dataclass(frozen=True)
class Seen:
    """How many times faster than dense a model is in one phase, and dense again in the same rounds."""

    name: str
    phase: str
    ratio: Ratio
    control: Ratio


def seen(runs: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> list[Seen]:
    """Every model over dense, in all the runs that timed both.

    Args:
        runs: ``models`` and ``seconds`` of each, as the raw file holds them.
        models: digests of their files by name, ``dense`` among them.

    Raises:
        TrimlineError: nothing was timed of one.
    """
    found = []
    for phase in PHASES:
        for name, files in models.items():
            if name == DENSE:
                continue
            openings: dict[str, list[Sequence[float]]] = {DENSE: [], name: [], CONTROL: []}
            for run in runs:
                theirs = next((other for other, held in run["models"].items() if held == files and other != DENSE), None)
                if theirs is not None and run["models"][DENSE] == models[DENSE]:
                    for mine, its in ((DENSE, DENSE), (name, theirs), (CONTROL, CONTROL)):
                        openings[mine] += by_opening(run["seconds"][phase][its], ROUNDS_PER_OPENING)
            if sum(map(len, openings[DENSE])) < 2:
                raise TrimlineError(f"There are no rounds of {name} yet.", "Take some: --rounds 42.")
            ratio, control = (pooled_ratio(openings[DENSE], openings[other]) for other in (name, CONTROL))
            found.append(Seen(name, phase, ratio, control))
    return found


def rows(found: Sequence[Seen], asked: Sequence[float]) -> list[list[str]]:
    """A line per model and phase; where a decode speed was asked for, what became of it."""
    names = list(dict.fromkeys(one.name for one in found))
    targets = dict(zip(names, asked, strict=False))
    lines = []
    for one in found:
        holds, target = control_holds(one.control), targets.get(one.name) if one.phase == "decode" else None
        outcome = "" if holds else "not resolved"
        if target is not None:
            outcome = Judgement("speedup", one.phase, target, one.ratio.value, one.ratio.low, one.ratio.high, holds).outcome
        figures = (rounds_of(one.ratio), interval(one.ratio), interval(one.control))
        lines.append([one.name, one.phase, *figures, f"{target:g}" if target else "–", outcome])
    return lines


def earlier(raw: Path | None, alike: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of a raw file.

    Raises:
        TrimlineError: it is none, or one of another request or machine, whose rounds do not count together.
    """
    if raw is None or not raw.exists():
        return []
    kept = read_json(raw)
    if not isinstance(kept, dict) or not {"runs", *alike} <= set(kept):
        raise TrimlineError(f"{raw} holds no rounds of this command.", "Name another file.")
    if other := [name for name, value in alike.items() if kept[name] != value]:
        raise TrimlineError(f"The rounds in {raw} have another {other[0]}.", "Name another file.")
    runs: list[dict[str, Any]] = kept["runs"]
    return runs


def folder_of(path: Path) -> Path:
    """The exported folder of a package, or of an export itself.

    Raises:
        TrimlineError: onnxruntime-genai has nothing to open there.
    """
    for place in (path, path / "onnx", path / "package" / "onnx"):
        if (place / CONFIG).is_file():
            return place
    raise TrimlineError(f"There is no {CONFIG} in {path}.", "Give an exported folder, a package or a run's output folder.")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    folders: Annotated[list[Path], typer.Argument(help="The dense model first.")],
    target: Annotated[list[float] | None, typer.Option(help="Decode speed-ups that were asked for, in the order of the models.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens.")] = 128,
    output: Annotated[int, typer.Option(min=2, help="Tokens generated.")] = 33,
    rounds: Annotated[
        int, typer.Option(min=0, help=f"Of this run; fewer than {LEAST_ROUNDS} in all resolve nothing. 0: only shows what --raw holds.")
    ] = 42,
    threads: Annotated[
        int, typer.Option(min=0, help="Of every process, each on a core of its own; 0: one per core that this process may use.")
    ] = 0,
    raw: Annotated[
        Path | None, typer.Option(help="File for the seconds of every round; what it holds of these models already counts too.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at genai-client.")] = None,
) -> None:
    """Print speed-ups over the first folder, with 95 % intervals, as a client of onnxruntime-genai sees them."""
    try:
        if len(folders) < 2:
            raise TrimlineError("One folder gives no comparison.", "Name the dense model and at least one smaller one.")
        if raw is not None:
            demand_folder(raw)
        cores = threads or RunOptions.threads
        named = dict(
            zip([DENSE, *(f"{number}: {path.name}" for number, path in enumerate(folders[1:], 1))], map(folder_of, folders), strict=True)
        )
        models = {name: digest([file_digest(file) for file in sorted(folder.glob(GRAPH))]) for name, folder in named.items()}
        alike = {"prompt": prompt, "output": output, "machine": fingerprint(cores)}
        runs = earlier(raw, alike)
        surroundings = environment(cores)
        if rounds:
            seconds = measured(named, prompt, output, rounds, cores, seed=len(runs))
            runs.append({"models": models, "seconds": seconds, "environment": surroundings})
            if raw is not None:
                write_json(raw, alike | {"runs": runs})
        head = ["model", "phase", "rounds", "speed-up", "dense again", "asked", "outcome"]
        table = markdown_table(head, rows(seen(runs, models), target or ()))
        typer.echo(table)
        if page is not None:
            where = f"{processor()}, commit {commit() or 'unknown'}"
            how = f"Prompt {prompt}, {output} tokens generated. {where}, {cores} threads; {software(surroundings)}."
            fill(page, "genai-client", f"{table}\n\n{how}")
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
