"""Trimline and published systems at the same measured decode speed: ``python -m benchmarks.studies.equal_speed MODEL``.

Each is asked for a speed, with one latency table for all, and keeps its own rule. What came of it is timed side by side by
a client of onnxruntime-genai that holds nothing of Trimline's. Where that client finds a model slower or faster than asked,
the allocation is given another speed and the row is made again, as a run with a target does itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.formulas.statistics import Ratio, control_holds, paired_ratio
from benchmarks.machine.environment import environment, fingerprint, processor, software
from benchmarks.recipe import LEAST_ROUNDS
from benchmarks.results.cells import interval
from benchmarks.results.target import Judgement
from benchmarks.studies.equal_speed.rows import EXPORTED, WORKLOAD, SpeedRow, asked_of, dense_row, folder_of, form_of, row_of, table_of
from benchmarks.studies.pages import fill, markdown_table
from benchmarks.studies.serving.genai_client import ROUNDS_PER_OPENING, Seconds, measured
from benchmarks.studies.systems.__main__ import chosen, numbers, run_options
from benchmarks.studies.systems.measure import Record, Setting, prepare
from benchmarks.studies.systems.systems import OURS
from benchmarks.studies.systems.tables import NOT_RESOLVED, loss_difference, with_error
from benchmarks.studies.systems.verdicts import AS_FAST, outcome
from benchmarks.timing.timing import CONTROL, DENSE
from pipeline.artefacts.artefact import digest
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.sources.folder import TEXTS
from pipeline.sources.recipe import CalibrationWindows, TextSlice, TextSource

PUBLISHED = ("cfsp", "flap", "llm_surgeon")
SPEEDUPS = "1.2,1.4,1.7"
AGAIN = 2  # times that a row is made again
ATTEMPTS = 3  # times that a timing takes its rounds, while dense does not agree with itself
COLUMNS = (
    "asked",
    "system",
    "decode speed-up",
    "target",
    "prefill speed-up",
    "parameters",
    "perplexity",
    "ours asked for",
    "its loss minus this one's, nats per token",
    "its decode speed over this one's",
    "outcome",
)


@dataclass(frozen=True)
class TimedSpeed:
    """What the client saw of the models that were asked for one speed.

    Attributes:
        seconds: by phase and model, every round.
        surroundings: machine and versions.
    """

    seconds: Seconds
    surroundings: Mapping[str, Any]

    def over_dense(self, name: str, phase: str = "decode") -> Ratio:
        """How many times faster than the dense model."""
        return self.over(DENSE, name, phase)

    def over(self, first: str, second: str, phase: str = "decode") -> Ratio:
        """How many times faster the second is than the first."""
        return paired_ratio(*(self.seconds[phase][name] for name in (first, second)), each=ROUNDS_PER_OPENING)

    def holds(self, phase: str = "decode") -> bool:
        """Whether dense agreed with itself."""
        return control_holds(self.over_dense(CONTROL, phase))

    def judged(self, record: Mapping[str, Any]) -> Judgement:
        """What became of the speed that a row was asked for."""
        found = self.over_dense(record["name"])
        return Judgement("speedup", "decode", record["asked"], found.value, found.low, found.high, self.holds())


def timed(records: Sequence[Record], setting: Setting, rounds: int) -> TimedSpeed:
    """The models of one speed side by side with dense, and dense again, in so many rounds, and as many more while dense does not agree with itself.

    What this machine timed so is kept, and gone on with where dense did not agree. Openings are whole.
    """
    whole = -(-rounds // ROUNDS_PER_OPENING) * ROUNDS_PER_OPENING
    asked = {"models": {record["name"]: record["key"] for record in records}, "rounds": rounds, "workload": WORKLOAD.name}
    place = setting.records / f"timed-{digest(asked | {'machine': fingerprint(setting.options.threads)})[:12]}.json"
    folders = {record["name"]: folder_of(setting, record) / EXPORTED for record in records}
    found = _kept(place)
    for _ in range(ATTEMPTS):
        if found is not None and found.holds():
            break
        before: Seconds = found.seconds if found is not None else {}
        made = len(before["decode"][DENSE]) if before else 0
        more = measured(folders, WORKLOAD.prompt, WORKLOAD.output, whole, setting.options.threads, seed=made)
        seconds = {phase: {name: before.get(phase, {}).get(name, []) + times for name, times in of.items()} for phase, of in more.items()}
        found = TimedSpeed(seconds, environment(setting.options.threads))
        write_json(place, {"asked": asked, "seconds": seconds, "environment": found.surroundings})
    assert found is not None
    return found


def _kept(place: Path) -> TimedSpeed | None:
    if not place.exists():
        return None
    kept = read_json(place)
    return TimedSpeed(kept["seconds"], kept["environment"])


def at_speed(
    asked: Sequence[SpeedRow], dense: Record, setting: Setting, table: Path, rounds: int, again: int = AGAIN
) -> tuple[list[Record], TimedSpeed]:
    """The rows of one speed and their timing; those that are off are made again with another speed given, where they can be."""
    for turn in range(again + 1):
        records = [row_of(one, setting, table) for one in asked]
        found = timed([dense, *records], setting, rounds)
        off = {record["name"] for record in records if found.judged(record).is_outside}
        if turn == again or not any(one.name in off and one.is_alone for one in asked):
            break
        asked = [_corrected(one, found) if one.name in off and one.is_alone else one for one in asked]
    return records, found


def _corrected(asked: SpeedRow, found: TimedSpeed) -> SpeedRow:
    return replace(asked, given=max(1.001, asked.given * asked.speedup / found.over_dense(asked.name).value))


def lines(records: Sequence[Record], found: TimedSpeed) -> list[list[str]]:
    """A line per row of one speed; published rows are compared with ours."""
    ours = [record for record in records if record["system"] == OURS]
    rows = []
    for record in records:
        name, judged = record["name"], found.judged(record)
        row = [
            f"{record['asked']:g}",
            record["title"],
            interval(found.over_dense(name)),
            judged.outcome,
            interval(found.over_dense(name, "prefill")) + ("" if found.holds("prefill") else f" ({NOT_RESOLVED})"),
            f"{record['parameters'] / 1e6:.1f} M",
            with_error(record["perplexity"]),
        ]
        rows.append(row + (["–"] * 4 if record in ours else against(record, ours, found)))
    return rows


def against(published: Record, ours: Sequence[Record], found: TimedSpeed) -> list[str]:
    """Which row of ours it is compared with, that one's loss minus its, our speed over its, and whether ours predicts better at no lower speed.

    Compared is the largest row of ours that is as fast; which one that is does not depend on what it predicts.
    """
    speeds_over = [(record, found.over(published["name"], record["name"])) for record in ours]
    fast_enough = [(record, speed) for record, speed in speeds_over if speed.reaches(1.0) and speed.value >= AS_FAST]
    if not fast_enough:
        return ["none is as fast", "–", "–", NOT_RESOLVED]
    mine, speed = max(fast_enough, key=lambda pair: pair[0]["parameters"])
    loss = loss_difference(published, mine)
    cells = [f"{mine['asked']:g}", f"{loss.mean:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]", interval(speed)]
    return [*cells, outcome(loss, found.holds())]


def note(setting: Setting, dense: Record, groups: Sequence[TimedSpeed]) -> str:
    """What a reader needs to know beside the table."""
    last = groups[-1].surroundings
    controls = ", ".join(interval(group.over_dense(CONTROL)) for group in groups)
    calibration, evaluation = setting.calibration, setting.evaluation
    texts = read_json(setting.texts / TEXTS)
    return (
        f"Prompt {WORKLOAD.prompt}, {WORKLOAD.output} tokens generated, fp32, timed by a client of onnxruntime-genai; dense over dense again: "
        f"{controls}. Dense has a perplexity of {with_error(dense['perplexity'])}. Calibration: {calibration.windows} windows of "
        f"{calibration.window} tokens of {texts['calibration'][0]['name']}, passes in {setting.options.as_record()['dtype']}; perplexity: "
        f"{evaluation.windows} windows of {evaluation.window} tokens of {texts['evaluation'][0]['name']}. {processor()}, "
        f"{setting.options.threads} threads; {software(last)}."
    )


def speeds(text: str) -> tuple[float, ...]:
    """``1.2,1.4`` as numbers.

    Raises:
        TrimlineError: something else.
    """
    found = numbers(text)
    if not found or min(found) <= 1 or len(set(found)) < len(found):
        raise TrimlineError(f"{text!r} is no list of speed-ups.", "Write them like 1.2,1.4,1.7, each above 1 and once.")
    return found


def main(
    model: Annotated[str, typer.Argument(help="'default', a checkpoint folder, a .gguf file or a hub id.")] = "default",
    calibration: Annotated[str, typer.Option(help="Text.")] = "default",
    evaluation: Annotated[str, typer.Option(help="Another text.")] = "default",
    work: Annotated[Path, typer.Option(help="Folder for plans, models and exports.")] = Path("runs/equal-speed"),
    records: Annotated[Path, typer.Option(help="Folder for what was measured; what is there is not measured again.")] = Path(
        "runs/equal-speed/records"
    ),
    only: Annotated[list[str] | None, typer.Option(help="These published systems, by name, beside Trimline.")] = None,
    speedups: Annotated[str, typer.Option(help="Of decoding.")] = SPEEDUPS,
    ours: Annotated[str, typer.Option(help="Further speed-ups of Trimline alone, to have rows at others' speeds.")] = "",
    table: Annotated[Path | None, typer.Option(help="Folder of a latency table of onnxruntime-genai that was measured here.")] = None,
    calibration_windows: Annotated[int, typer.Option(help="Of the calibration text.")] = 32,
    evaluation_windows: Annotated[int, typer.Option(help="Of the evaluation text.")] = 24,
    window: Annotated[int, typer.Option(help="Tokens of each.")] = 1024,
    rounds: Annotated[int, typer.Option(min=2, help=f"Fewer than {LEAST_ROUNDS} resolve nothing.")] = 60,
    again: Annotated[int, typer.Option(min=0, help="Times that a row that is off may be made anew, for a corrected speed.")] = AGAIN,
    most_seconds: Annotated[float, typer.Option(help="Of measuring the latency table, per four shapes.")] = 300.0,
    threads: Annotated[int, typer.Option(help="0: all that this process may use.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the passes that measure; auto: bfloat16 where the processor has it.")] = "auto",
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at equal-speed.")] = None,
) -> None:
    """Prune with every system to the same decode speeds, evaluate, time, and print one table."""
    text = TextSlice(calibration=TextSource(source=calibration), evaluation=TextSource(source=evaluation))
    drawn, read = CalibrationWindows(windows=calibration_windows, window=window), EvaluateSlice(windows=evaluation_windows, window=window)
    try:
        rows = asked_of(chosen([OURS, *(only or PUBLISHED)]), speeds(speedups), speeds(ours) if ours else ())
        setting = prepare(model, text, drawn, read, run_options(dtype, threads), work, records)
        times = table_of(setting, form_of(setting, most_seconds), table)
        dense = dense_row(setting)
        found = {
            speed: at_speed([row for row in rows if row.beside == speed], dense, setting, times, rounds, again)
            for speed in dict.fromkeys(row.beside for row in rows)
        }
        body = markdown_table(list(COLUMNS), [line for of_speed in found.values() for line in lines(*of_speed)])
        document = f"{body}\n\n{note(setting, dense, [group for _, group in found.values()])}"
        typer.echo(document)
        if page is not None:
            fill(page, "equal-speed", document)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
