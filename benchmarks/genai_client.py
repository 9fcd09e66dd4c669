"""What an independent client sees: ``python -m benchmarks.genai_client DENSE SMALLER…``, exported folders or packages.

onnxruntime-genai generates in processes that hold nothing of Trimline's: neither its session nor its timing. Rounds are
interleaved, dense runs a second time as control, and a speed that was asked for is judged as the benchmark's own are.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.child import Child
from benchmarks.environment import commit, environment, processor, software
from benchmarks.markdown import interval, rounds_of
from benchmarks.pages import demand_folder, fill, markdown_table
from benchmarks.pinning import pin
from benchmarks.recipe import LEAST_ROUNDS
from benchmarks.statistics import Ratio, control_holds, paired_ratio
from benchmarks.target import Judgement
from benchmarks.timing import CONTROL, DENSE
from pipeline.checkpoint import read_json, write_json
from pipeline.errors import TrimlineError
from pipeline.options import RunOptions

CONFIG = "genai_config.json"
PHASES = ("prefill", "decode")
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
            clients = {name: running.enter_context(Child(name, module="benchmarks.genai_worker")) for name in _shuffled(named, chance)}
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


def ratios(seconds: Seconds) -> dict[str, dict[str, Ratio]]:
    """Per phase and model how many times faster than dense it is; the control among them."""
    return {
        phase: {name: paired_ratio(of_phase[DENSE], times, each=ROUNDS_PER_OPENING) for name, times in of_phase.items() if name != DENSE}
        for phase, of_phase in seconds.items()
    }


def rows(found: Mapping[str, Mapping[str, Ratio]], asked: Sequence[float]) -> list[list[str]]:
    """A line per model and phase; where a decode speed was asked for, what became of it."""
    lines = []
    for phase, of_phase in found.items():
        control = of_phase[CONTROL]
        for place, (name, ratio) in enumerate((name, ratio) for name, ratio in of_phase.items() if name != CONTROL):
            outcome = "" if control_holds(control) else "not resolved"
            target = asked[place] if phase == "decode" and place < len(asked) else None
            if target is not None:
                outcome = Judgement("speedup", phase, target, ratio.value, ratio.low, ratio.high, control_holds(control)).outcome
            figures = (rounds_of(ratio.as_record()), interval(ratio.as_record()), interval(control.as_record()))
            lines.append([name, phase, *figures, f"{target:g}" if target else "–", outcome])
    return lines


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
    rounds: Annotated[int, typer.Option(min=2, help=f"Fewer than {LEAST_ROUNDS} resolve nothing.")] = 40,
    threads: Annotated[
        int, typer.Option(min=0, help="Of every process, each on a core of its own; 0: one per core that this process may use.")
    ] = 0,
    raw: Annotated[Path | None, typer.Option(help="File for the seconds of every round and the surroundings.")] = None,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at genai-client.")] = None,
) -> None:
    """Print speed-ups over the first folder, with 95 % intervals, as a client of onnxruntime-genai sees them."""
    try:
        if len(folders) < 2:
            raise TrimlineError("One folder gives no comparison.", "Name the dense model and at least one smaller one.")
        if raw is not None:
            demand_folder(raw)
        cores = threads or RunOptions.threads
        names = [DENSE, *(f"{number}: {path.name}" for number, path in enumerate(folders[1:], 1))]
        seconds = measured(dict(zip(names, map(folder_of, folders), strict=True)), prompt, output, rounds, cores)
        head = ["model", "phase", "rounds", "speed-up", "dense again", "asked", "outcome"]
        table = markdown_table(head, rows(ratios(seconds), target or ()))
        typer.echo(table)
        surroundings = environment(cores)
        if raw is not None:
            how_many = {"rounds": rounds, "rounds_per_opening": ROUNDS_PER_OPENING}
            asked = {"prompt": prompt, "output": output, **how_many, "targets": list(target or ())}
            write_json(raw, {"asked": asked, "seconds": seconds, "environment": surroundings})
        if page is not None:
            where = f"{processor()}, commit {commit() or 'unknown'}"
            how = f"Prompt {prompt}, {output} tokens generated. {where}, {cores} threads; {software(surroundings)}."
            fill(page, "genai-client", f"{table}\n\n{how}")
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
