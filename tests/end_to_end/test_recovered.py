"""A recipe with recovery, from model to package; killed while it trains; as a verb; on two processes."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trimline as api
from deploy.verify import verify
from pipeline.artefacts.artefact import WORK
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.recover.resuming import SEAL
from tests.end_to_end.processes import Running
from tests.end_to_end.scenario import (
    OPTIONS,
    SETTINGS,
    all_files,
    assert_nothing_half_written,
    assert_refused,
    changed,
    computed_files,
    recipe,
    trimline,
    written,
)
from trimline.stages.run import RunResult

pytestmark = pytest.mark.usefixtures("quick_measuring")


@pytest.fixture(scope="module")
def values(inputs) -> dict[str, Any]:
    return recipe("recovered", inputs)


@pytest.fixture(scope="module")
def done(values, tmp_path_factory, quick_measuring) -> RunResult:
    return api.run(values, tmp_path_factory.mktemp("run"), options=OPTIONS)


def same_named(output: Path) -> dict[str, str]:
    """Computed files; the key of the package depends on the output folder's name."""
    return {re.sub(r"^package-\w+", "package", name): digest for name, digest in computed_files(output).items()}


def test_what_is_shipped_is_what_was_trained(done):
    recovered, rebuilt = done.artefacts["recover"].folder, done.artefacts["rebuild"].folder
    for path in (done.package / "model").iterdir():
        assert path.read_bytes() == (recovered / path.name).read_bytes(), path.name
        assert path.name == "model.safetensors" or path.read_bytes() == (rebuilt / path.name).read_bytes(), path.name
    assert (recovered / "model.safetensors").read_bytes() != (rebuilt / "model.safetensors").read_bytes()
    assert verify(done.package) == []
    assert not list(done.folder.glob(f"store/{WORK}*"))
    assert_nothing_half_written(done.folder)


def test_the_report_says_what_training_gave(done):
    report, found = done.report, {}
    for lane in ("dense", "rebuilt", "pruned"):
        found[lane] = read_json(done.artefacts[f"evaluate {lane}"].folder / "perplexity.json")["perplexity"]
    assert len(set(found.values())) == 3
    assert report.recovery is not None
    assert report.recovery.before.value == found["rebuilt"]
    assert report.model("pruned").perplexity.value == found["pruned"]
    record = read_json(done.artefacts["recover"].folder / "recover.json")
    assert [list(point) for point in report.recovery.losses] == [[point["step"], point["loss"]] for point in record["losses"]]
    assert all(math.isfinite(loss) for _, loss in report.recovery.losses)
    assert sum(record["ranks"].values()) == 4 * 4
    assert len(set(record["ranks"].values())) > 1
    gates = {row.name: row.passed for row in report.gates}
    assert gates["adapters → merged weights"]
    assert gates["trained model → recovered checkpoint"]
    for page in ("report.md", "README.md"):
        text = (done.package / page).read_text(encoding="utf-8")
        assert f"{found['rebuilt']:.2f}" in text
        assert "LoRA of rank 4 on average, more to important blocks" in text


def test_running_again_skips_every_stage_and_changes_no_byte(done, values):
    before = all_files(done.folder)
    again = api.run(values, done.folder, options=OPTIONS)
    assert [name for name, artefact in again.artefacts.items() if not artefact.skipped] == []
    assert all_files(done.folder) == before


def test_a_fresh_run_elsewhere_makes_the_same_bytes(done, values, tmp_path):
    api.run(values, tmp_path / "fresh", options=OPTIONS)
    assert same_named(tmp_path / "fresh") == same_named(done.folder)


@pytest.mark.slow
def test_a_change_runs_only_what_depends_on_it(values, tmp_path):
    output, after = tmp_path / "out", {"evaluate pruned", "export pruned", "benchmark", "report", "package"}
    api.run(values, output, options=OPTIONS)
    changes = (
        (("recover", "steps"), 5, {"recover"} | after),
        (("recover", "save_every"), 9, {"report", "package"}),
        (("evaluate", "windows"), 3, {"evaluate dense", "evaluate rebuilt", "evaluate pruned", "benchmark", "report", "package"}),
    )
    for path, value, expected in changes:
        again = api.run(changed(values, *path, to=value), output, options=OPTIONS)
        assert {name for name, artefact in again.artefacts.items() if not artefact.skipped} == expected, path
    plain = {name: part for name, part in values.items() if name != "recover"}
    again = api.run(plain, output, options=OPTIONS)
    assert {name for name, artefact in again.artefacts.items() if not artefact.skipped} == after - {"evaluate pruned"}
    assert again.report.recovery is None


@pytest.mark.slow
def test_killed_while_it_trains_the_same_command_goes_on(values, tmp_path):
    long = changed(values, "recover", "steps", to=60)
    path, output = written(long, tmp_path), tmp_path / "out"
    running = Running(tmp_path / "process", "run", path, "-o", output, *SETTINGS)
    assert running.until(output / "store", f"{WORK}recover-*/checkpoint-*/{SEAL}")
    running.send(signal.SIGKILL)
    assert running.end().code == -signal.SIGKILL
    (work,) = output.glob(f"store/{WORK}recover-*")
    reached = max(int(state.parent.name.removeprefix("checkpoint-")) for state in work.glob(f"checkpoint-*/{SEAL}"))
    assert 4 <= reached < 60
    told: list[api.Event] = []
    api.run(path, output, options=OPTIONS, events=api.Events(told.append))
    steps = [event.done for event in told if event.text.startswith("training")]
    assert steps[:3] == [0, reached, reached + 1]
    assert_nothing_half_written(output)
    api.run(long, tmp_path / "undisturbed", options=OPTIONS)
    assert same_named(output) == same_named(tmp_path / "undisturbed")


def test_the_verb_alone_makes_what_the_run_makes(done, values, tmp_path):
    path, rebuilt = written(values, tmp_path), done.artefacts["rebuild"].folder
    called = trimline("recover", path, rebuilt, "-o", tmp_path / "made" / "out", *SETTINGS, "--json")
    assert called.code == 0, called.stderr
    assert called.answer["folder"] == str(tmp_path / "made" / "out")
    for file in ("model.safetensors", "config.json", "recover.json", "gate.json", "plan.json"):
        assert (tmp_path / "made" / "out" / file).read_bytes() == (done.artefacts["recover"].folder / file).read_bytes(), file
    assert [place.name for place in (tmp_path / "made").iterdir()] == ["out"]
    assert trimline("evaluate", tmp_path / "made" / "out", "--text", values["text"]["evaluation"], "--windows", 2, "--window", 32).code == 0


def test_the_verb_interrupted_goes_on_and_other_inputs_start_afresh(done, values, tmp_path):
    long = changed(values, "recover", "steps", to=60)
    path, rebuilt, made = written(long, tmp_path), done.artefacts["rebuild"].folder, tmp_path / "made"
    running = Running(tmp_path / "process", "recover", path, rebuilt, "-o", made / "out", *SETTINGS)
    assert running.until(made, f"{WORK}out-*/checkpoint-*/{SEAL}")
    running.send(signal.SIGINT)
    assert_refused(running.end(), "Interrupted", code=130)
    assert [place.name[:5] for place in made.iterdir()] == [WORK[:5]]
    other: list[api.Event] = []
    api.recover(changed(values, "recover", "seed", to=3), rebuilt, made / "other", options=OPTIONS, events=api.Events(other.append))
    assert [event.done for event in other if event.text.startswith("training")][:2] == [0, 1]
    told: list[api.Event] = []
    api.recover(path, rebuilt, made / "out", options=OPTIONS, events=api.Events(told.append))
    steps = [event.done for event in told if event.text.startswith("training")]
    assert steps[0] == 0
    assert steps[1] >= 4
    assert steps[-1] == 60
    assert sorted(place.name for place in made.iterdir()) == ["other", "out"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((("recover", "knid"), "full"), ("'recover.knid'", "'kind'")),
        ((("recover", "kind"), "full"), ("'lora' belongs to kind 'lora'",)),
        ((("recover", "loss"), "text"), ("'hidden_states' belong to loss 'distillation'",)),
        ((("recover", "lora", "targets"), ["attention", "head"]), ("'recover.lora.targets.1'", "'ffn'")),
        ((("recover", "lora", "targets"), []), ("at least one",)),
        ((("recover", "windows"), 5000), ("The recovery asks for 5000 windows",)),
        ((("recover", "batch"), 3), ("recover.batch to a multiple of 2",)),
    ],
)
def test_what_a_recipe_cannot_ask_for(values, tmp_path, change, words):
    called = trimline("run", written(changed(values, *change[0], to=change[1]), tmp_path), "-o", tmp_path / "out", *SETTINGS)
    assert_refused(called, *words)
    assert_nothing_half_written(tmp_path / "out")


def test_ranks_by_importance_need_a_step_that_measures_it_before_anything_is_pruned(values, tmp_path):
    step = {"method": "magnitude", "budget": {"ffn": {"remove": 0.5}}, "allocation": "uniform", "round_to": 8}
    with pytest.raises(TrimlineError, match="no step of the plan measures it"):
        api.run(changed(values, "prune", "steps", to=[step]), tmp_path / "out", options=OPTIONS)
    assert not list(tmp_path.glob("out/store/prune-*"))


def test_a_recipe_that_says_nothing_of_recovery(values, done, tmp_path):
    plain = {name: part for name, part in values.items() if name != "recover"}
    called = trimline("recover", written(plain, tmp_path), done.artefacts["rebuild"].folder, "-o", tmp_path / "out")
    assert_refused(called, "does not say how to recover", "{kind: lora}")


@pytest.mark.slow
def test_two_processes_train_as_one(done, values, tmp_path):
    """Launched by torchrun: gradients are averaged over the processes, the batch is the recipe's, the first one writes."""
    one = changed(changed(values, "recover", "micro_batch", to=4), "recover", "steps", to=3)
    two = changed(one, "recover", "micro_batch", to=2)
    rebuilt = done.artefacts["rebuild"].folder
    alone = api.recover(one, rebuilt, tmp_path / "alone", options=OPTIONS)
    arguments = ("recover", written(two, tmp_path), rebuilt, "-o", tmp_path / "shared", *SETTINGS, "--json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trimline.cli"]
    called = subprocess.run(
        [*launcher, *map(str, arguments)], capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert called.returncode == 0, called.stderr
    assert len([line for line in called.stdout.splitlines() if line.startswith("{")]) == 1
    shared = tmp_path / "shared"
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    moved = 0.0
    for name, tensor in Checkpoint(alone).tensors():
        before = Checkpoint(rebuilt).tensor(name)
        moved = max(moved, (tensor - before).abs().max().item())
        assert (Checkpoint(shared).tensor(name) - tensor).abs().max() < 1e-5, name
    assert moved > 1e-4
    assert sorted(place.name for place in tmp_path.iterdir()) == ["alone", "recipe.yaml", "shared"]
