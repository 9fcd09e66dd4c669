"""A sweep on a real Ray cluster of two nodes, one of which is killed while it works."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time

import psutil
import pytest

import benchmarks.stage
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from tests.end_to_end.scenario import OPTIONS, InProcess, assert_refused, changed, computed_files, recipe, tiny_inputs, written
from tests.end_to_end.scenario import trimline as command
from trimline.api import sweep

pytest.importorskip("ray", reason="ray is not installed (extra: ray)")
cluster_utils = pytest.importorskip("ray.cluster_utils")

GRID = {"method": ["cfsp", "flap"], "remove": [0.5]}
QUICK = {"workloads": [{"prompt": 8}, {"prompt": 4, "output": 4}], "rounds": 2, "minimum_seconds": 0, "most_seconds": 1}
FAST_DEATH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
AS_OTHERS = {"worker_niceness": 0}  # Ray's workers give way to everything else, and import for a minute on a busy machine
TASK = "ray::stage_task"


@pytest.fixture
def values(tmp_path):
    plain = recipe("cfsp-least-squares", tiny_inputs(tmp_path / "inputs")) | {"rebuild": {"profile": "free"}, "benchmark": QUICK}
    return changed(plain, "prune", "steps", 0, "compensation", to="none")


@pytest.fixture
def cluster():
    """A head that computes nothing, and two nodes of one processor each."""
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": FAST_DEATH | AS_OTHERS, **small})
    try:
        for _ in range(2):
            found.add_node(wait=False, num_cpus=1, **small)  # each takes seconds, so both at once
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


class Killer(threading.Thread):
    """Kills the node of the first stage that it sees half-written, with its worker, the hard way."""

    def __init__(self, cluster, store):
        super().__init__(daemon=True)
        self.cluster, self.store, self.killed = cluster, store, None

    def run(self):
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in self.cluster.worker_nodes}
        deadline = time.monotonic() + 400  # workers take long to import what they need on a busy machine
        while time.monotonic() < deadline:
            for worker in psutil.process_iter(["pid", "ppid", "cmdline"]):
                busy = (worker.info["cmdline"] or [""])[0].startswith(TASK) and worker.info["ppid"] in raylets
                half = [path.name for path in self.store.glob(".partial-*")]
                if busy and half:
                    os.kill(worker.pid, signal.SIGKILL)
                    self.cluster.remove_node(raylets[worker.info["ppid"]], allow_graceful=False)
                    self.killed = half
                    return
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_outlives_a_node_and_makes_what_the_local_one_makes(values, cluster, tmp_path, monkeypatch):
    (tmp_path / "pipeline.py").write_text("raise SystemExit('not for Trimline')")
    monkeypatch.chdir(tmp_path)  # Ray has its workers look there first
    killer, told = Killer(cluster, tmp_path / "ray" / "store"), []
    killer.start()
    found = sweep(values, GRID, tmp_path / "ray", ray=cluster.address, options=OPTIONS, events=Events(told.append), shards=2)
    killer.join(timeout=1)
    assert killer.killed, "no stage was caught at work"
    assert len(cluster.worker_nodes) == 1
    assert [point.failure or point.untimed for point in found.points] == [""] * 2
    assert all(point.speeds for point in found.points)
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)  # its times are compared with none
    local = sweep(values, GRID, tmp_path / "local", options=OPTIONS, shards=2)
    assert computed_files(tmp_path / "ray") == computed_files(tmp_path / "local")
    stages = {
        name: sorted(p.name for p in (tmp_path / name / "store").glob("*-*") if "benchmark" not in p.name) for name in ("ray", "local")
    }
    assert stages["ray"] == stages["local"]
    assert not list((tmp_path / "ray" / "store").glob(".partial-*")) + list((tmp_path / "ray" / "store").glob(".lock-*"))
    assert [point.perplexity for point in found.points] == [point.perplexity for point in local.points]
    assert each_once(told)


def each_once(told: list[Event]) -> bool:
    """No stage was reported done twice by the driver."""
    done = [event.text for event in told if event.kind == "note" and event.text.endswith(" done")]
    return done.count("evaluate dense done") == done.count("export dense done") == 1 and done.count("statistics 0 done") == 1


def node(name, address="10.0.0.1", **resources):
    return {"NodeID": name, "NodeManagerAddress": address, "Resources": {"CPU": 1.0} | resources}


def test_timing_prefers_the_node_that_was_marked_then_its_own():
    from trimline.sweeps.ray_executor import timing_node

    here, other, marked = node("c"), node("b", "10.0.0.0"), node("d", timing=1.0)
    assert timing_node([here, other, marked], "c") is marked
    assert timing_node([other, here], "c") is here
    assert timing_node([here, other], "none of them") is other
    with pytest.raises(TrimlineError, match="no node left"):
        timing_node([], "c")


@pytest.mark.parametrize(
    ("error", "kind"), [(TrimlineError("A.", "B."), TrimlineError), (GateError("A.", "B."), GateError), (ValueError("A. B."), RuntimeError)]
)
def test_what_goes_wrong_in_a_worker_keeps_its_kind_and_its_words(error, kind):
    from trimline.sweeps.remote import _problem, problem_of

    found = problem_of(_problem(error))
    assert type(found) is kind
    assert "A. B." in str(found)
    full = problem_of(_problem(OSError(errno.ENOSPC, "full", "somewhere")))
    assert (full.errno, full.filename) == (errno.ENOSPC, "somewhere")


def test_a_worker_with_other_code_or_without_the_storage_refuses(values, tmp_path):
    from trimline.recipe import checked_recipe
    from trimline.stages.names import DENSE, TEXT, evaluation_of
    from trimline.stages.order import SHARED
    from trimline.sweeps.remote import problem_of, stage_task
    from trimline.sweeps.tasks import LaneRun, Task, foresee

    run = LaneRun(checked_recipe(values), OPTIONS, tmp_path / "out", Events(), "")
    for job in SHARED:
        run.do(job)
    task = Task.of(run.recipe, OPTIONS, tmp_path / "out", evaluation_of(DENSE), run.done)
    assert Task.from_record(json.loads(json.dumps(task.as_record()))) == task
    keys = {str(name): artefact.key for name, artefact in foresee(task).items()}
    other = problem_of(stage_task(task.as_record(), dict.fromkeys(keys, "another")))
    assert "would make another evaluate dense" in str(other)
    assert not list((tmp_path / "out" / "store").glob("evaluate-*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimline.sweeps.remote.PATIENCE", 0.0)
        shutil.move(run.done[TEXT].folder, tmp_path / "elsewhere")
        assert "storage that all nodes share" in str(problem_of(stage_task(task.as_record(), keys)))


def test_a_dead_address_is_said_to_be_dead(values, tmp_path):
    called = command("sweep", written(values, tmp_path), "--grid", "method=cfsp", "--output", tmp_path / "out", "--ray", "127.0.0.1:1")
    assert_refused(called, "No Ray cluster answers at 127.0.0.1:1", "ray start")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["here", "host:", ":1", "host:port"])
def test_what_is_no_address_is_refused(values, tmp_path, address):
    with pytest.raises(TrimlineError, match="no address of a Ray cluster"):
        sweep(values, GRID, tmp_path / "out", ray=address, options=OPTIONS)


def test_without_ray_nothing_imports_it():
    import subprocess
    import sys

    code = "import sys, trimline.api, trimline.cli.app; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
