"""FSDP with two processes on a processor (gloo): what comes out is what one process trains, whole, zeros included."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover
from pipeline.recover.zeros import projection_weights
from tests.end_to_end.scenario import prose
from tests.pipeline.recover.test_stage import OPTIONS
from tests.pipeline.recover.test_zeros_and_states import masked, two_four
from tests.tiny import tiny_model

QUICK = {"steps": 3, "batch": 4, "windows": 8, "window": 24, "learning_rate": 1e-3, "held_out": 2, "patience": 99}
WAYS = {
    "full": {"kind": "full", "loss": "distillation", "hidden_states": 0.3, "weight_decay": 0.1},
    "lora": {"lora": {"rank": 3}, "loss": "text"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model, the same with 2:4 weights, a text, and what two processes made of them together."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model("llama", folder / "dense", num_hidden_layers=2)
    checkpoint = Checkpoint(tiny_model("llama", folder / "pruned", num_hidden_layers=2))
    masked(checkpoint.folder, {name: two_four(checkpoint.tensor(name)) for name in projection_weights(checkpoint.geometry)})
    (folder / "calibration.txt").write_text(prose(1, 30), encoding="utf-8")
    ways = {name: QUICK | values | {"micro_batch": 2, "sharded": True} for name, values in WAYS.items()}
    (folder / "ways.json").write_text(json.dumps(ways))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    called = subprocess.run(
        [*launcher, "-m", "tests.pipeline.recover.sharing", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert called.returncode == 0, called.stderr
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_that_share_a_model_train_as_one(way, folder):
    alone = folder / f"alone-{way}"
    alone.mkdir()
    values = QUICK | WAYS[way] | {"micro_batch": 4}
    recover(folder / "dense", folder / "pruned", folder, RecoverSlice(**values), OPTIONS, alone, folder / f"work-alone-{way}", Events())
    before, one, two = (Checkpoint(folder / name) for name in ("pruned", f"alone-{way}", way))
    assert one.locations == two.locations == before.locations
    moved = {name: (one.tensor(name) - tensor).abs().max().item() for name, tensor in before.tensors()}
    assert max(moved.values()) > 1e-4
    for name, tensor in one.tensors():
        assert (two.tensor(name) - tensor).abs().max() < 1e-5, name
    assert all(two_four_fraction(two.tensor(name)) == 1.0 for name in projection_weights(before.geometry))
    assert {path.name for path in alone.iterdir()} == {path.name for path in (folder / way).iterdir()}
    records = [read_json(folder / name / "recover.json") for name in (f"alone-{way}", way)]
    assert records[0]["trained parameters"] == records[1]["trained parameters"]
    for a, b in zip(*(record["losses"] for record in records), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    assert read_json(folder / way / "gate.json")["attempts"][-1]["reopened"]["passed"]


def test_nothing_else_is_left(folder):
    """Nothing of a sharded run is left: no state, which would be a pickle, and nothing by the second process."""
    assert not any(path.is_file() for name in WAYS for path in (folder / f"work-{name}").rglob("*"))
    assert all(not list((folder / f"other-{name}").iterdir()) for name in WAYS)


def test_one_process_has_nobody_to_share_with(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(TrimlineError, match=r"shares the training among processes.* torchrun"):
        recover(folder / "dense", folder / "pruned", folder, RecoverSlice(sharded=True), OPTIONS, tmp_path, tmp_path / "work", Events())
