"""Settings of recovery compared on one pruned folder: the same few tokens, each judged on the text's kind and on another.

``python -m benchmarks.studies.recovery.sweep PRUNED --text VALIDATION --judge TEST`` prints a row per setting: CPU seconds, and on each judge
the change of the loss in nats, paired by window. Rows that are in the work folder are not trained again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.formulas.statistics import paired_difference
from benchmarks.machine.environment import processor_flags, processor_model
from benchmarks.studies.recovery.reach import costed
from benchmarks.studies.systems.row import made
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, evaluate
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover
from pipeline.sources import model as model_source
from pipeline.sources import text as text_source
from pipeline.sources.recipe import ModelSlice, TextSlice

FULL, LORA = {"kind": "full"}, {"kind": "lora"}
TEXT = {"loss": "text"}
SETTINGS: dict[str, dict[str, Any]] = {
    "full, 2e-5": FULL | {"learning_rate": 2e-5},
    "full, 1e-4": FULL | {"learning_rate": 1e-4},
    "full, 2e-4": FULL | {"learning_rate": 2e-4},
    "full, 5e-4": FULL | {"learning_rate": 5e-4},
    "full, 2e-4, table trained": FULL | {"learning_rate": 2e-4, "embeddings": "trained"},
    "full, 2e-4, text": FULL | TEXT | {"learning_rate": 2e-4},
    "LoRA 16, 2e-4": LORA | {"learning_rate": 2e-4},
    "LoRA 16, 1e-3": LORA | {"learning_rate": 1e-3},
    "LoRA 16, 2e-3": LORA | {"learning_rate": 2e-3},
    "LoRA 16, 5e-3": LORA | {"learning_rate": 5e-3},
    "LoRA 64, 2e-3": LORA | {"learning_rate": 2e-3, "lora": {"rank": 64, "alpha": 128.0}},
    "LoRA 16, 2e-3, text": LORA | TEXT | {"learning_rate": 2e-3},
}
QUIET = Events()


def main(
    pruned: Annotated[Path, typer.Argument(help="Folder of a pruned checkpoint.")],
    text: Annotated[str, typer.Option(help="What trains.")],
    judge: Annotated[str, typer.Option(help="Another text of its kind; the built-in prose judges too.")],
    dense: Annotated[str, typer.Option(help="What it was pruned from.")] = "default",
    work: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("runs/recovery-sweep"),
    steps: Annotated[int, typer.Option(help="Of the optimiser.")] = 8,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 1,
    window: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    windows: Annotated[int, typer.Option(help="Of each judge.")] = 8,
    judged_window: Annotated[int, typer.Option(help="Tokens of each of them.")] = 512,
    only: Annotated[list[str] | None, typer.Option(help="Only these settings, by name.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write what was measured there.")] = None,
) -> None:
    """Train with every setting, judge, print one table."""
    options, wanted = RunOptions(dtype="float32", threads=1), EvaluateSlice(windows=windows, window=judged_window)
    shared = {"steps": steps, "batch": batch, "micro_batch": 1, "window": window, "schedule": "constant", "warm_up": 0.0, "held_out": 4}

    def judged(model: Path, name: str) -> list[list[float]]:
        place = made(work / f"judged-{name}", lambda out: evaluate(model, texts, wanted, options, out, QUIET))
        return [found["window_losses"] for found in read_json(place / RESULT)["texts"]]

    try:
        named = TextSlice.model_validate({"calibration": text, "evaluation": [judge, "default"]})
        texts = made(work / "text", lambda out: text_source.texts(named, options, out, QUIET))
        source = made(work / "source", lambda out: model_source.source(ModelSlice(source=dense), options, out, QUIET))
        original = model_source.checkpoint_folder(source)
        before, rows = judged(pruned, "before"), {}
        for name, values in SETTINGS.items():
            if only and name not in only:
                continue
            place, recipe = work / name.replace(", ", "-").replace(" ", "-"), RecoverSlice.model_validate(shared | values)
            states = place.with_suffix(".work")
            train = partial(recover, original, pruned, texts, recipe, options, work=states, events=QUIET)
            seconds = costed(place, lambda out, train=train: train(out=out), options)  # type: ignore[misc]
            changes = [paired_difference(*pair) for pair in zip(before, judged(place, place.name), strict=True)]
            rows[name] = {"seconds": seconds, "changes": [[one.mean, one.low, one.high] for one in changes]}
            shown = "  ".join(f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for one in changes)
            typer.echo(f"{name:28} {seconds:6.1f} CPU s  {shown}")
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    if record:
        write_json(record, {"asked": shared, "rows": rows, "processor": processor_model(), "flags": processor_flags(), "threads": 1})


if __name__ == "__main__":
    typer.run(main)
