"""``python -m benchmarks.studies.gpu``: takes every step, or with ``--dry`` prints each and checks what needs no GPU."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.gpu.steps import MOST_SECONDS, GpuStep, recipe_file, recipe_text, steps
from pipeline.common.driver import cuda_devices

RECORD, LOGS, SAMPLES = "steps.json", "logs", "samples"
SAMPLED = ("build.log", "layers.json", "build.json")
FAILED = 1


def take(todo: Sequence[GpuStep], output: Path, say: Callable[[str], None] = print) -> int:
    """Runs the steps; returns the exit status. What failed and was not essential is said at the end.

    Every step's output goes to the terminal and into ``logs``; steps.json says what happened.
    """
    (output / LOGS).mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    for number, step in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {step.name}: {step.why}")
        started = time.monotonic()
        problem = _driver_problem() if not step.command else _run(step, output, say)
        done.append({"step": step.name, "command": list(step.command), "problem": problem, "seconds": time.monotonic() - started})
        (output / RECORD).write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
        if problem and step.essential:
            say(f"error: {step.name}: {problem}")
            return FAILED
    _keep_samples(output)
    failed = [entry for entry in done if entry["problem"]]
    for entry in failed:
        say(f"failed: {entry['step']}: {entry['problem']}")
    say(f"{len(done) - len(failed)} of {len(done)} steps succeeded; reports and logs are in {output}.")
    return FAILED if failed else 0


def dry(todo: Sequence[GpuStep], output: Path, say: Callable[[str], None] = print) -> int:
    """Prints every step, and checks what can be checked without a GPU; returns the exit status."""
    from benchmarks.studies.gpu.checks import model_problem, problems_of

    wrong = 0
    for model in dict.fromkeys(step.recipe["model"] for step in todo if step.recipe is not None):
        wrong += _checked(*model_problem(model), say)
    for number, step in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {step.name}: {step.why}")
        say(f"    {shlex.join(step.command) if step.command else 'asks the driver for its devices'}")
        for checked, problem in problems_of(step, output):
            wrong += _checked(checked, problem, say, "    ")
    say(f"{wrong} things are wrong." if wrong else "Nothing was run; all that needs no GPU was checked.")
    return FAILED if wrong else 0


def _checked(what: str, problem: str, say: Callable[[str], None], indent: str = "") -> bool:
    """Says what a check found; whether it is wrong."""
    say(f"{indent}{'wrong' if problem else 'checked'}: {what}{f': {problem}' if problem else ''}")
    return bool(problem)


def _run(step: GpuStep, output: Path, say: Callable[[str], None]) -> str:
    if step.recipe is not None:
        path = recipe_file(output, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe_text(step), encoding="utf-8")
    log = output / LOGS / f"{step.name.replace(' ', '-')}.log"
    last = ""
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            say(f"    {line.rstrip()}")
            last = line.strip() or last
    if process.returncode:
        return f"{last or 'no output'} (exit status {process.returncode}; {log})"
    for source, name in step.keep.items():
        if (output / source).exists():
            shutil.copyfile(output / source, output / name)
    return ""


def _driver_problem() -> str:
    devices = cuda_devices()
    if devices:
        return ""
    return "this machine has no NVIDIA driver" if devices is None else "the driver sees no GPU"


def _keep_samples(output: Path) -> None:
    """Real logs and inspector JSON, for the tests that were written from the documented formats."""
    for folder in sorted((output / "store").glob("build-*")):
        for name in SAMPLED:
            if (folder / name).is_file():
                (output / SAMPLES / folder.name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, output / SAMPLES / folder.name / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line; no library is there yet to read it."""
    parser = argparse.ArgumentParser(prog="make gpu", description="Everything of Trimline that needs an NVIDIA GPU.")
    parser.add_argument("--model", default="default", help="folder or hub id, of 7 to 8 billion parameters say; MODEL= of make")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder for everything that is written")
    parser.add_argument("--tensorrt", choices=("10", "11", "none"), default="10", help="major version, or none; TENSORRT= of make")
    parser.add_argument("--precision", default="fp16", help="of the exported graphs; PRECISION= of make")
    parser.add_argument("--here", action="store_true", help="install nothing: this environment has it all; HERE=1 of make")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="that one step may go on timing")
    parser.add_argument("--only", action="append", metavar="STEP", help="only the step of this name, as often as wanted")
    parser.add_argument("--dry", action="store_true", help="print, and check what needs no GPU; DRY=1 of make")
    given = parser.parse_args(arguments)
    tensorrt = None if given.tensorrt == "none" else int(given.tensorrt)
    todo = steps(
        given.model, given.output, sys.executable, tensorrt=tensorrt, precision=given.precision, here=given.here, seconds=given.seconds
    )
    names = [step.name for step in todo]
    if unknown := [name for name in given.only or () if name not in names]:
        parser.error(f"there is no step {unknown[0]!r}; the steps are {', '.join(names)}")
    return (dry if given.dry else take)([step for step in todo if given.only is None or step.name in given.only], given.output)


if __name__ == "__main__":
    sys.exit(main())
