"""What the end-to-end tests share: tiny inputs, recipes filled in, the command line called, results looked at."""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml
from typer.testing import CliRunner

from benchmarks.machine.ceilings import multiply_rates, read_rates
from benchmarks.timing.worker import Worker
from pipeline.artefacts.artefact import MEASURED, RECORD, file_digest
from pipeline.common.options import RunOptions
from tests.tiny import tiny_model
from trimline.cli.app import app

RECIPES = Path(__file__).parent / "recipes"
OPTIONS = RunOptions(dtype="float32", threads=1)
SETTINGS = ("--threads", "1", "--dtype", "float32")  # the same on the command line
COMPUTED = {
    *("plan.json", "updates.safetensors", "scores.safetensors", "model.safetensors", "config.json", "model.onnx", "model.onnx.data"),
    *("genai_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "perplexity.json", "recipe.yaml"),
    *("calibration.txt", "evaluation.txt", "text.json", "gate.json"),
}


def prose(seed: int, lines: int) -> str:
    """Lines of invented words; two seeds share no line."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 9))) for _ in range(300)]
    return "".join(" ".join(draw.choices(words, k=14)) + "\n" for _ in range(lines))


def tiny_inputs(folder: Path, family: str = "llama", **overrides: Any) -> Path:
    """A folder with ``model``, ``calibration.txt`` and ``evaluation.txt``."""
    tiny_model(family, folder / "model", **overrides)
    (folder / "calibration.txt").write_text(prose(1, 40), encoding="utf-8")
    (folder / "evaluation.txt").write_text(prose(2, 30), encoding="utf-8")
    return folder


def recipe(name: str, inputs: Path) -> dict[str, Any]:
    """A scenario's recipe as plain values, its placeholders filled in."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(Template(text).substitute(folder=inputs))


def changed(values: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    """A copy with one value replaced or added."""
    result = copy.deepcopy(values)
    place: Any = result
    for part in path[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[path[-1]] = to
    return result


def written(values: dict[str, Any], folder: Path) -> Path:
    """The recipe as a YAML file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


class InProcess:
    """Answers what a measuring process answers, from this one: an interpreter takes seconds to start, a tiny model none."""

    def __init__(self, name: str, **_: Any) -> None:
        self._worker = Worker()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        if do == "pin":  # would bind the tests themselves to some cores
            return {"cores": sorted(os.sched_getaffinity(0))}
        if do == "ceilings":
            return {"bandwidth": read_rates(1, 3, 2**22), "rate": multiply_rates(1, 3, 64, 64)}
        return json.loads(json.dumps(self._worker.answer({"do": do, **what})))


@dataclass(frozen=True)
class Called:
    """What a call of the command line left."""

    code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON document on the last line of stdout."""
        return json.loads(self.stdout.splitlines()[-1])


def trimline(*arguments: object) -> Called:
    """Calls the command line in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Called(result.exit_code, result.stdout, result.stderr)


def command(*arguments: object) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "trimline.cli", *map(str, arguments)]


def assert_refused(called: Called, *words: str, code: int = 2) -> None:
    """One sentence that names the thing, the exit code, and no traceback."""
    sentences = [line for line in called.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, called.stderr
    assert "Traceback" not in called.stderr + called.stdout
    missing = [word for word in words if word not in sentences[0]]
    assert not missing, f"{missing} not in: {sentences[0]}"
    assert sentences[0].endswith((".", "?")), sentences[0]
    assert "Something went wrong inside" not in sentences[0], sentences[0]
    assert called.code == code, called.stderr


def assert_nothing_half_written(output: Path) -> None:
    """Whole artefacts, the lock and the links; nothing else."""
    if not output.is_dir():
        return
    assert {path.name for path in output.iterdir()} <= {"store", "package", "report.html"}
    for path in (output / "store").glob("*"):
        assert path.name == ".lock" or ((path / RECORD).is_file() and (path / MEASURED).is_file()), path


def computed_files(output: Path) -> dict[str, str]:
    """SHA-256 of every computed file, by stage folder and name."""
    places = (path for path in (output / "store").rglob("*") if path.is_file() and path.name in COMPUTED)
    return {path.relative_to(output / "store").as_posix(): file_digest(path) for path in places}


def all_files(output: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and time of change of every file."""
    files = (path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): (file_digest(path), path.stat().st_mtime_ns) for path in files}
