"""Every system at the same sizes, on the same tokens: ``python -m benchmarks.studies.systems MODEL`` (``make results``).

Each row is pruned, rebuilt and evaluated in a process of its own, and timed by its shape; what is measured already is not
measured again, so that the command goes on where it stopped. A row that fails says why, and the others are made all the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.markdown import machine
from benchmarks.studies.pages import fill, markdown_table
from benchmarks.studies.systems.measure import NOT_YET, Record, Setting, measured_row, prepare
from benchmarks.studies.systems.plot import plot
from benchmarks.studies.systems.row import code
from benchmarks.studies.systems.speed import ROUNDS, RUNS, TOGETHER, Speeds, TimingPlan, timings
from benchmarks.studies.systems.systems import SURGEON, SURGEON_SHOTS, SURGEON_TOGETHER, SYSTEMS, System, rows_of, size_text
from benchmarks.studies.systems.tables import few_rows, named, results_table
from benchmarks.studies.systems.verdicts import SAME_SIZE, VERDICTS, at_the_same_size, verdicts
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.common.options import DType, RunOptions
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.sources.folder import TEXTS
from pipeline.sources.recipe import CalibrationWindows, TextSlice, TextSource


@dataclass(frozen=True)
class Pages:
    """Where the results go, apart from the terminal.

    Attributes:
        front: a page for a few rows and the plot.
        details: a page for all rows, the plot and the verdicts.
        image: the plot's own file.
    """

    front: Path | None = None
    details: Path | None = None
    image: Path | None = None

    def write(self, tables: tuple[str, str], judged: str, drawn: str | None, surroundings: str) -> None:
        """Fills the places of the pages that were named.

        Args:
            tables: a few rows, and all of them with their notes.
            judged: the verdicts.
            drawn: the plot as SVG, None without one.
            surroundings: the machine.

        Raises:
            TrimlineError: a page has no place for it.
        """
        if self.image is not None and drawn is not None:
            self.image.write_text(drawn, encoding="utf-8")
        few, whole = tables
        if self.front is not None:
            fill(self.front, "systems-few", few + self._picture(self.front, drawn))
        if self.details is not None:
            fill(self.details, "systems", whole + self._picture(self.details, drawn))
            fill(self.details, "systems-verdict", f"{judged}\n\n{surroundings}")

    def _picture(self, page: Path, drawn: str | None) -> str:
        if self.image is None or drawn is None:
            return ""
        return f"\n\n![Perplexity against decode speed-up, a line per system]({os.path.relpath(self.image, page.parent)})"


def notes(records: Sequence[Record], setting: Setting, speeds: Speeds) -> str:
    """What a reader needs to know beside the table."""
    calibration, evaluation, now = setting.calibration, setting.evaluation, code()
    texts = read_json(setting.texts / TEXTS)
    processors = sorted({str(record["processor"]) + f" ({', '.join(record['flags'])})" for record in records if "processor" in record})
    lines = [
        f"Calibration: {calibration.windows} windows of {calibration.window} tokens of {texts['calibration'][0]['name']}, forward passes in "
        f"{setting.options.as_record()['dtype']}. Perplexity: {evaluation.windows} windows of {evaluation.window} tokens of "
        f"{texts['evaluation'][0]['name']}, ± its standard error; ÷ dense with its 95 % interval, paired by window. FFN widths are multiples of 64 in every row. "
        "Speed-ups, with 95 % intervals, of a 512-token prompt and of steps after 128 tokens, fp32 in ONNX Runtime; rows of equal shapes "
        "share their timings. Pruning is measuring and the prune stage, from files to files, in processor seconds; its peak is of anonymous memory, "
        f"the interpreter and its libraries included. Pruned on: {'; '.join(processors) or 'nothing yet'}."
    ]
    if any(record["system"] == SURGEON for record in records):
        lines.append(
            f"LLM Surgeon is reduced: {SURGEON_SHOTS} shots to 50 % on these tokens, and smaller sizes are models on the way, as its paper "
            "reports them; published are 40 shots on 128 windows of 2048 or more. For 2:4 it solves for "
            f"{SURGEON_TOGETHER} weights at once, or a whole row that loses more; published are 2000."
        )
    lines += [f"{named(record)}, has no speed: {record['untimed']}" for record in records if "untimed" in record]
    planned = [record for record in records if record.get("code")]
    stale, fresh = ([record["name"] for record in planned if (record["code"] == now) is same] for same in (False, True))
    if stale:
        rest = f"all rows{' but ' if fresh else ''}{', '.join(fresh)}"
        lines.append(f"The code has changed since these rows were made: {', '.join(stale) if len(stale) <= len(fresh) else rest}.")
    commits = sorted({short(record["commit"]) for record in records if record.get("commit")})
    lines.append(f"Rows were made at commit {', '.join(commits) or 'unknown'}; interleaved runs that were timed: {len(speeds.runs)}.")
    return "\n\n".join(lines)


def short(commit: str) -> str:
    """Twelve digits, and ``+`` where the checkout was changed."""
    return commit[:12] + commit[40:]


def show(records: Sequence[Record], speeds: Speeds, setting: Setting, sizes: Sequence[float], pages: Pages) -> None:
    """Prints the table and the verdicts, and writes them and the plot where they were asked for."""
    table = results_table(records, speeds.rows) + "\n\n" + notes(records, setting, speeds)
    asked = [size_text(size) for size in sizes]
    found, alike = verdicts(records, speeds, asked), at_the_same_size(records, speeds, asked)
    judged = markdown_table(list(VERDICTS), found) if found else "Nothing was timed."
    if alike:
        judged += f"\n\nWith as many weights:\n\n{markdown_table(list(SAME_SIZE), alike)}"
    typer.echo(f"{table}\n\n{judged}")
    surroundings = machine(speeds.runs[0]) if speeds.runs else ""
    pages.write((few_rows(records, speeds.rows), table), judged, plot(records, speeds.rows), surroundings)


def chosen(names: Sequence[str] | None) -> tuple[System, ...]:
    """The systems of these names; all without.

    Raises:
        TrimlineError: there is none of that name.
    """
    known = {system.name: system for system in SYSTEMS}
    if unknown := [name for name in names or () if name not in known]:
        raise TrimlineError(f"There is no system {unknown[0]!r}.", f"Known are {', '.join(known)}.")
    return tuple(system for name, system in known.items() if not names or name in names)


def fractions(text: str) -> tuple[float, ...]:
    """``0.2,0.3`` as numbers.

    Raises:
        TrimlineError: something else.
    """
    found = numbers(text)
    if found is None or not all(0 < value < 1 for value in found):
        raise TrimlineError(f"{text!r} is no list of fractions.", "Write them like 0.2,0.3,0.5.")
    return found


def numbers(text: str) -> tuple[float, ...] | None:
    """Numbers between commas; None where something is none."""
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        return None


def run_options(dtype: str, threads: int) -> RunOptions:
    """How every row computes; 0 threads are all that this process may use.

    Raises:
        TrimlineError: there is no such dtype.
    """
    if dtype not in get_args(DType):
        raise TrimlineError(f"There is no dtype {dtype!r}.", f"Known are {', '.join(get_args(DType))}.")
    options = RunOptions(dtype=cast(DType, dtype))
    return replace(options, threads=threads) if threads else options


def main(
    model: Annotated[str, typer.Argument(help="'default', a checkpoint folder, a .gguf file or a hub id.")] = "default",
    calibration: Annotated[str, typer.Option(help="Text.")] = "default",
    evaluation: Annotated[str, typer.Option(help="Another text.")] = "default",
    work: Annotated[Path, typer.Option(help="Folder for models and plans, which can go when the command is done.")] = Path("runs/systems"),
    records: Annotated[Path, typer.Option(help="Folder for what was measured; what is there is not measured again.")] = Path(
        "runs/systems/records"
    ),
    only: Annotated[list[str] | None, typer.Option(help="Only these systems, by name, beside the dense model.")] = None,
    sizes: Annotated[str, typer.Option(help="Fractions of the decoder's linear parameters.")] = "0.2,0.3,0.5",
    ours: Annotated[str, typer.Option(help="Further fractions for Trimline, to have rows at others' speeds.")] = "0.21,0.22,0.4,0.51,0.58",
    sparse: Annotated[bool, typer.Option(help="Also 2:4.")] = True,
    measure: Annotated[bool, typer.Option(help="Make and time rows that are not there yet; without, what is there is shown.")] = True,
    latency: Annotated[bool, typer.Option(help="Time the rows' shapes, last.")] = True,
    calibration_windows: Annotated[int, typer.Option(help="Of the calibration text.")] = 32,
    evaluation_windows: Annotated[int, typer.Option(help="Of the evaluation text.")] = 24,
    window: Annotated[int, typer.Option(help="Tokens of each.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Interleaved; fewer than 25 resolve nothing.")] = ROUNDS,
    together: Annotated[int, typer.Option(min=1, help="Models timed in one run, a process each.")] = TOGETHER,
    runs: Annotated[int, typer.Option(min=1, help="In which every model is timed.")] = RUNS,
    most_seconds: Annotated[float, typer.Option(help="Of one such run.")] = 3600.0,
    again: Annotated[bool, typer.Option(help="Time again what was not resolved.")] = False,
    threads: Annotated[int, typer.Option(help="0: all that this process may use.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the passes that measure; auto: bfloat16 where the processor has it.")] = "auto",
    anew: Annotated[bool, typer.Option(help="Measure the chosen rows again.")] = False,
    front: Annotated[Path | None, typer.Option(help="Put a few rows and the plot into this page, at systems-few.")] = None,
    details: Annotated[
        Path | None, typer.Option(help="Put all rows and the plot into this page, at systems, and the verdicts at systems-verdict.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Write the plot there, as SVG.")] = None,
) -> None:
    """Prune a model with every system at the same sizes, evaluate, time, and print one table."""
    text = TextSlice(calibration=TextSource(source=calibration), evaluation=TextSource(source=evaluation))
    drawn, read = CalibrationWindows(windows=calibration_windows, window=window), EvaluateSlice(windows=evaluation_windows, window=window)
    try:
        rows = rows_of(chosen(only), fractions(sizes), fractions(ours), sparse)
        setting = prepare(model, text, drawn, read, run_options(dtype, threads), work, records)
        found = [measured_row(row, setting, anew and not (only and row.is_dense), measure) for row in rows]
        timed = BenchmarkSlice(rounds=rounds, minimum_seconds=0.0, most_seconds=most_seconds)
        speeds = timings(found, setting, TimingPlan(timed, together, runs, new=measure, again=again)) if latency else Speeds()
        found = [record | speeds.why(record["name"]) for record in found]
        show(found, speeds, setting, fractions(sizes), Pages(front, details, image))
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    if failed := [named(row) for row in found if "untimed" in row or row.get("failure", NOT_YET) != NOT_YET]:
        typer.echo(f"Failed: {'; '.join(failed)}.", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
