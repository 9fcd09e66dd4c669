"""Weights, plans and texts that change while something is made of them: one sentence, and nothing is kept; then it goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import trimline as api
from pipeline.artefacts import artefact
from pipeline.artefacts.artefact import WORK
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from tests.end_to_end.scenario import OPTIONS, assert_nothing_half_written, recipe
from trimline.recipe import checked_slice

pytestmark = pytest.mark.usefixtures("quick_measuring")
WEIGHTS = "model.safetensors"


def spoil(path: Path) -> None:
    """The same size and the same name; other bytes at the end."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (b" " if content[-1:] != b" " else b"\n"))


@pytest.fixture
def own(inputs, tmp_path) -> Path:
    """Inputs that may be spoilt."""
    return Path(shutil.copytree(inputs, tmp_path / "inputs"))


def when(does: Callable[[Event], bool], change: Callable[[], None]) -> Events:
    """Events that have something changed once, when the first of a kind is told."""
    waiting = [change]
    return Events(lambda event: waiting.pop()() if waiting and does(event) else None)


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("source", f"model/{WEIGHTS}"),
        ("text", "calibration.txt"),
        ("measure", f"model/{WEIGHTS}"),
        ("rebuild", f"model/{WEIGHTS}"),
        ("rebuild", "model/config.json"),
    ],
)
def test_a_run_makes_nothing_of_two_versions(own, tmp_path, stage, file):
    events = when(lambda event: (event.kind, event.stage) == ("stage_started", stage), lambda: spoil(own / file))
    with pytest.raises(TrimlineError, match="changed while it was being read") as caught:
        api.run(recipe("cfsp-least-squares", own), tmp_path / "out", options=OPTIONS, events=events)
    assert str(own / file) in str(caught.value)
    assert not list(tmp_path.glob(f"out/store/{stage}-*"))
    assert_nothing_half_written(tmp_path / "out")


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory, quick_measuring) -> api.RunResult:
    return api.run(recipe("cfsp-least-squares", inputs), tmp_path_factory.mktemp("made") / "out", options=OPTIONS)


def prune(own: Path, out: Path) -> None:
    api.prune(recipe("cfsp-least-squares", own), out, options=OPTIONS)


def rebuild(own: Path, out: Path) -> None:
    api.rebuild(own / "model", own / "plan", out, profile="decilm", options=OPTIONS)


def export(own: Path, out: Path) -> None:
    api.export(own / "model", out, options=OPTIONS)


def export_gguf(own: Path, out: Path) -> None:
    api.export_gguf(own / "model", out, options=OPTIONS)


def recover(own: Path, out: Path) -> None:
    training = {"kind": "full", "loss": "text", "steps": 1, "batch": 2, "windows": 2, "window": 24}
    api.recover(recipe("cfsp-least-squares", own) | {"recover": training}, own / "model", out, options=OPTIONS)


def bench(own: Path, out: Path) -> None:
    timing = checked_slice("benchmark", {"workloads": ["8/1"], "rounds": 2, "minimum_seconds": 0})
    api.bench(own / "export dense", {"pruned": own / "export pruned"}, out, recipe=timing, options=OPTIONS)


def package(own: Path, out: Path) -> None:
    api.package(own / "package", out, targets=["triton"], options=OPTIONS)


@pytest.mark.parametrize(
    ("verb", "file"),
    [
        (prune, f"model/{WEIGHTS}"),
        (prune, "calibration.txt"),
        (rebuild, f"model/{WEIGHTS}"),
        (rebuild, "plan/updates.safetensors"),
        (recover, f"model/{WEIGHTS}"),
        (export, "model/config.json"),
        (export_gguf, f"model/{WEIGHTS}"),
        (bench, "export pruned/model.onnx.data"),
        (package, "package/model/tokenizer.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_no_verb_keeps_what_it_made_of_two_versions(own, made, tmp_path, monkeypatch, verb, file):
    """The file changes when all was read, and nothing was renamed."""
    for name in ("export dense", "export pruned"):
        shutil.copytree(made.artefacts[name].folder, own / name)
    shutil.copytree(made.artefacts["prune"].folder, own / "plan")
    shutil.copytree(made.package, own / "package")
    sums = artefact.write_sums

    def spoilt(folder: Path) -> None:
        if folder.name.endswith("out"):
            spoil(own / file)
        sums(folder)

    monkeypatch.setattr(artefact, "write_sums", spoilt)
    with pytest.raises(TrimlineError, match="changed while it was being read") as caught:
        verb(own, tmp_path / "made" / "out")
    assert str(own / file) in str(caught.value)
    assert all(path.name.startswith(WORK) for path in (tmp_path / "made").iterdir())  # what a first shot measured


def test_evaluate_gives_no_figure_of_two_versions(own):
    events = when(lambda event: event.kind == "progress", lambda: spoil(own / "evaluation.txt"))
    with pytest.raises(TrimlineError, match=r"evaluation\.txt changed while"):
        api.evaluate(own / "model", text=str(own / "evaluation.txt"), windows=2, window=32, options=OPTIONS, events=events)
