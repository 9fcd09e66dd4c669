"""Tokens per CPU second and peak memory of a step of recovery, here and in another tree of this project, side by side.

``python -m benchmarks.studies.recovery.speed PRUNED --before TREE`` trains every weight of a pruned folder towards the built-in model (or
``--dense``) for a few steps, in both trees in turn, each time in a process of its own, with one thread in fp32. ``TREE`` is a worktree of
commit 75026d1. Here it is done twice: with windows that every step reads again, so that of the dense model only what was kept is read, and with
windows that are read once, where its own reading counts. CPU seconds, since other work on the machine changes those of the clock.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine.environment import processor_flags, processor_model
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.sources.model import checkpoint_folder, source
from pipeline.sources.recipe import DEFAULT, ModelSlice, TextSource
from pipeline.sources.text import load_text

STEP = Path(__file__).with_name("step.py")
HERE = Path(__file__).parents[3]
SHARED = {"kind": "full", "loss": "distillation", "learning_rate": 2e-4, "window": 512}


def measured(tree: Path, folders: list[str], recipe: dict[str, Any]) -> dict[str, Any]:
    """What one process found.

    Raises:
        SystemExit: it failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "out").mkdir()
        asked = {"tree": str(tree.resolve()), "folders": folders, "recipe": recipe, "out": f"{place}/out", "work": f"{place}/work"}
        told = subprocess.run([sys.executable, "-P", str(STEP), json.dumps(asked)], capture_output=True, text=True, check=False)
        if told.returncode:
            raise SystemExit(told.stderr)
        found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
        return found


def summed(runs: list[dict[str, Any]], tokens: int, window: int) -> dict[str, float]:
    """Tokens per CPU second of the median step; the same with the teacher's reading of as many tokens; and the largest peaks in bytes."""
    step = statistics.median(seconds for run in runs for seconds in run["steps"])
    reads = [run["read"] / run["windows read"] for run in runs if run["windows read"]]
    first = step + (statistics.median(reads) * tokens / window if reads else 0.0)
    memory = {kind: max(run[kind] for run in runs) for kind in ("peak", "anonymous")}
    return {"again": tokens / step, "first": tokens / first} | memory


def main(
    pruned: Annotated[Path, typer.Argument(help="Folder of a pruned checkpoint.")],
    before: Annotated[Path, typer.Option(help="Worktree of commit 75026d1.")],
    dense: Annotated[str, typer.Option(help="What it was pruned from.")] = DEFAULT,
    batch: Annotated[int, typer.Option(min=1, help="Windows of 512 tokens a step.")] = 4,
    steps: Annotated[int, typer.Option(min=3, help="Of one run, the first of which is not counted.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each tree, in turn.")] = 2,
    record: Annotated[Path | None, typer.Option(help="Write what was measured there.")] = None,
) -> None:
    """Compare a step of recovery with that of another tree."""
    with tempfile.TemporaryDirectory() as place:
        texts, held = Path(place) / "texts", Path(place) / "dense"
        texts.mkdir()
        held.mkdir()
        (texts / "calibration.txt").write_text(load_text(TextSource(), "calibration"), encoding="utf-8", newline="")
        source(ModelSlice(source=dense), RunOptions(threads=1), held, Events())
        folders = [str(checkpoint_folder(held)), str(pruned.resolve()), str(texts)]
        recipe = SHARED | {"steps": steps, "batch": batch, "micro_batch": batch, "windows": batch}
        now = recipe | {"held_out": 0}
        trees = {"before": (before, recipe), "again": (HERE, now), "new": (HERE, now | {"windows": batch * steps})}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
        for _ in range(rounds):
            for name, (tree, asked) in trees.items():
                runs[name].append(measured(tree, folders, asked))
                typer.echo(f"{name}: {runs[name][-1]}", err=True)
    found = {name: summed(of, batch * 512, 512) for name, of in runs.items()}
    old = found["before"]
    for name, seconds in (
        ("windows that were read before", found["again"]["again"]),
        ("windows that are read once", found["new"]["first"]),
    ):
        typer.echo(f"{name}: {old['again']:.0f} → {seconds:.0f} tokens a CPU second, {seconds / old['again']:.2f} times")
    for name, kind in (("resident", "peak"), ("anonymous", "anonymous")):
        most = max(found["again"][kind], found["new"][kind])
        typer.echo(f"peak memory, {name}: {old[kind] / 2**30:.2f} → {most / 2**30:.2f} GiB, {most / old[kind]:.2f} of it")
    if record:
        machine = {"processor": processor_model(), "flags": processor_flags(), "dtype": "float32", "threads": 1}
        write_json(record, {"asked": recipe, "runs": runs, "found": found} | machine)


if __name__ == "__main__":
    typer.run(main)
