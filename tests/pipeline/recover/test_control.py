"""Held-out loss decides what is written and when it is enough; what is trained, and what of the teacher is kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from pipeline.recover.recipe import RecoverSlice
from tests.pipeline.rebuild.cases import absent_parts, rebuilt_tiny
from tests.pipeline.recover.test_stage import FULL, LORA, Case, Killed, digests

TAUGHT = {"loss": "distillation", "patience": 2, "held_out": 2}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """Uneven blocks whose token table is the head."""
    folder = tmp_path_factory.mktemp("control")
    return Case.made(folder, folder / "dense", rebuilt_tiny(folder, "llama", absent_parts, Profile.DECILM))


def record(out: Path) -> dict[str, Any]:
    return read_json(out / "recover.json")


@pytest.mark.parametrize("values", [FULL, LORA | {"lora": {"rank": 3}}], ids=["full", "lora"])
def test_what_gets_worse_is_not_written(case, values):
    ruinous = values | TAUGHT | {"learning_rate": 3.0, "warm_up": 0.0, "steps": 20, "evaluate_every": 1}
    out = case.recover(f"ruined {values.get('kind')}", ruinous)
    found = record(out)
    assert found["best"]["step"] == 0
    assert found["taken"] == found["stopped"] == 2
    assert [point["step"] for point in found["held out"]] == [0, 1, 2]
    before, after = Checkpoint(case.pruned), Checkpoint(out)
    assert all(torch.equal(tensor, after.tensor(name)) for name, tensor in before.tensors())
    assert not list((case.folder / f"work-ruined {values.get('kind')}").glob("best-*"))


def test_the_best_state_is_written_and_not_the_last(case):
    """With the steps of the best state alone, the same bytes come out: the schedule is constant, so nothing knows how long it goes on."""
    values = (
        FULL | TAUGHT | {"schedule": "constant", "warm_up": 0.0, "learning_rate": 3e-3, "steps": 40, "evaluate_every": 2, "patience": 99}
    )
    values |= {"windows": 4, "batch": 4}
    out = case.recover("best", values)
    best = record(out)["best"]["step"]
    assert 0 < best < 40
    losses = {point["step"]: point["loss"] for point in record(out)["held out"]}
    assert losses[best] == min(losses.values()) < losses[40]
    again = case.recover("only so far", values | {"steps": best})
    assert digests(again)["model.safetensors"] == digests(out)["model.safetensors"]


def test_killed_after_its_best_state_it_still_writes_that(case):
    values = (
        FULL | TAUGHT | {"schedule": "constant", "warm_up": 0.0, "learning_rate": 3e-3, "steps": 40, "evaluate_every": 2, "patience": 99}
    )
    values |= {"windows": 4, "batch": 4, "save_every": 3}
    whole = case.recover("unbroken", values)

    def kill(event: Event) -> None:
        if event.text.startswith("training") and event.done == 35:
            raise Killed

    with pytest.raises(Killed):
        case.recover("broken", values, events=Events(kill))
    assert digests(case.recover("broken", values)) == digests(whole)


@pytest.mark.parametrize(("windows", "width"), [(12, 64), (6, 65)], ids=["states", "expectations"])
def test_a_teacher_on_disk_teaches_the_same(case, windows, width):
    """Bit for bit by states; by expectations, which windows that are read again and again have, to within rounding."""
    values = FULL | TAUGHT | {"micro_batch": 1, "batch": 2, "windows": windows}
    found = {how: case.recover(f"{how} {windows}", values | {"teacher_states": how}) for how in ("kept", "computed")}
    place = case.folder / f"work-kept {windows}" / "teacher.safetensors"
    with safe_open(str(place), framework="pt") as states:
        assert states.get_slice("0").get_shape() == [24, width]
    assert not (case.folder / f"work-computed {windows}" / "teacher.safetensors").exists()
    kept, computed = (Checkpoint(out) for out in found.values())
    for name, tensor in kept.tensors():
        if width == 64:
            assert torch.equal(computed.tensor(name), tensor), name
        else:
            torch.testing.assert_close(computed.tensor(name), tensor, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("embeddings", "moves"), [("auto", False), ("frozen", False), ("trained", True)])
def test_a_table_that_is_the_head_too_is_trained_where_that_is_asked_for(case, embeddings, moves):
    out = case.recover(f"table {embeddings}", FULL | TAUGHT | {"embeddings": embeddings})
    name = "model.embed_tokens.weight"
    assert Checkpoint(case.pruned).geometry.tied
    assert torch.equal(Checkpoint(out).tensor(name), Checkpoint(case.pruned).tensor(name)) != moves


def test_held_out_windows_are_no_training_windows(case):
    """Of a text whose end is other words, what is held out is that end."""
    folder = case.folder / "marked"
    folder.mkdir()
    text = (case.folder / "calibration.txt").read_text(encoding="utf-8")
    (folder / "calibration.txt").write_text(text, encoding="utf-8")
    from pipeline.live.loading import load_tokenizer
    from pipeline.recover.data import training_windows

    tokenizer = load_tokenizer(case.pruned)
    drawn = training_windows(tokenizer, folder, RecoverSlice(**FULL), Checkpoint(case.pruned).geometry)
    stream = tokenizer(text)["input_ids"]
    cut = [stream[at : at + 24] for at in range(0, len(stream) - 23, 24)]
    assert drawn.apart.tolist() == cut[-2:]
    assert len({tuple(row) for row in drawn.windows.tolist()}) == 12
    assert all(row in cut[:-2] for row in drawn.windows.tolist())
    assert sorted(drawn.order) == list(range(12))


def test_without_a_number_of_windows_every_step_reads_new_ones_until_the_text_is_used_up(case):
    from pipeline.live.loading import load_tokenizer
    from pipeline.recover.data import training_windows

    tokenizer, geometry = load_tokenizer(case.pruned), Checkpoint(case.pruned).geometry
    recipe = RecoverSlice(steps=2, batch=4, window=24, held_out=1)
    few = training_windows(tokenizer, case.folder, recipe, geometry)
    assert len(few.windows) == 8 == len(few.order)
    many = training_windows(tokenizer, case.folder, recipe.model_copy(update={"steps": 100}), geometry)
    there = len(tokenizer((case.folder / "calibration.txt").read_text())["input_ids"]) // 24 - 1
    assert len(many.windows) == there
    assert len(many.order) == 400
    reads = [many.order.count(number) for number in range(there)]
    assert max(reads) - min(reads) <= 1


def test_without_held_out_windows_the_last_state_is_written(case):
    values = FULL | {"held_out": 0, "loss": "distillation"}
    del values["patience"]
    out = case.recover("blind", values)
    assert "best" not in record(out)
    assert record(out)["taken"] == 6


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "lora", "embeddings": "trained"}, "belongs to kind 'full'"),
        ({"loss": "text", "teacher_states": "kept"}, "needs loss 'distillation'"),
        ({"hidden_states": 0.1, "teacher_states": "kept"}, "without 'hidden_states'"),
        ({"held_out": 0, "patience": 2}, "belong to held_out windows"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        RecoverSlice(**values)


def test_a_text_that_is_held_out_whole_is_refused(case, tmp_path):
    folder = shutil.copytree(case.folder, tmp_path / "short", ignore=lambda *_: ["work*"])
    text = (folder / "calibration.txt").read_text(encoding="utf-8")
    (folder / "calibration.txt").write_text(text[:60], encoding="utf-8")
    with pytest.raises(TrimlineError, match=r"The recovery asks for 1 windows of 24 tokens and 2 held out = 72; the text has"):
        Case(folder, case.dense, case.pruned).recover("short", FULL | {"windows": None})
