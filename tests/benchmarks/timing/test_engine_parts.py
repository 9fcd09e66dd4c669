"""What a TensorRT engine's calls are made of, from made-up samples: in the record, in the tables, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results.document import Results
from benchmarks.results.from_samples import FORMULAS, PARTS, results_of
from benchmarks.results.markdown import timings
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import CONTROL, DENSE, Sample, Samples
from exporters.folder import CONFIG, EXPORT
from exporters.tensorrt.folder import RECORD
from pipeline.common.files import write_json
from tests.benchmarks.results.sample_results import PROCESS
from tests.tiny import tiny_model

WORKLOAD = Workload(prompt=8, output=3)
CEILINGS = [{"bandwidth": [1e9], "rate": [1e9]}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model("llama", tmp_path_factory.mktemp("parts") / "model")
    (folder / CONFIG).write_bytes((folder / "config.json").read_bytes())
    write_json(folder / EXPORT, {"lowering": "portable", "precision": "fp16"})
    write_json(folder / RECORD, {"sparse_kernels": {"verdict": "refuted"}})
    return folder


def sample(scale: float) -> Sample:
    of_prompt = {"enqueue": [0.1], "h2d": [1.0 * scale], "compute": [4.0 * scale], "d2h": [2.0 * scale]}
    of_steps = {"enqueue": [0.1, 0.3], "h2d": [0.25, 0.75], "compute": [1.0, 3.0], "d2h": [0.5, 0.5]}
    return Sample(8.0 * scale, [3.0, 5.0], 0.0, parts={"prefill": of_prompt, "decode": of_steps})


def recorded(engine: Path, samples: list[Sample]) -> Results:
    recipe = BenchmarkSlice(workloads=(WORKLOAD,), rounds=len(samples), minimum_seconds=0.0, runtime="tensorrt")
    subjects = {name: Subject.read(name, engine, "tensorrt") for name in (DENSE, "pruned")}
    timed = {WORKLOAD.name: {name: Samples(samples) for name in (DENSE, "pruned", CONTROL)}}
    facts = dict.fromkeys((DENSE, "pruned", CONTROL), PROCESS)
    return results_of(subjects, timed, recipe, CEILINGS, facts, "fp16", {}).with_perplexities({DENSE: 9.0, "pruned": 9.0})


def test_the_record_has_every_part_and_their_sum(engine):
    found = recorded(engine, [sample(1.0), sample(2.0), sample(3.0)])
    rows = {row.phase: row for row in found.timings if row.model == "pruned"}
    assert {name: part.p50 for name, part in rows["prefill"].parts.items()} == {
        "enqueue": 0.1,
        "h2d": 2.0,
        "compute": 8.0,
        "d2h": 4.0,
        "host_latency": 14.0,
    }
    assert rows["prefill"].queries_per_second == pytest.approx(3 / (8 + 16 + 24))
    assert rows["prefill"].parts["compute"].n == 3
    assert {name: part.p50 for name, part in rows["decode"].parts.items()} == {
        "enqueue": pytest.approx(0.2),
        "h2d": 0.5,
        "compute": 2.0,
        "d2h": 0.5,
        "host_latency": 3.0,
    }
    assert found.formulas.items() >= PARTS.items()
    assert found.samples[WORKLOAD.name]["pruned"].parts[1]["decode"]["h2d"] == [0.25, 0.75], "raw, step by step"
    settings = found.models["pruned"].engine_settings
    assert (settings["cuda_graphs"], settings["sparse_kernels"]) == (False, "refuted")
    assert {"spin_wait", "data_transfers"} <= set(settings)


def test_the_tables_show_them_under_trtexecs_names(engine):
    found = recorded(engine, [sample(1.0), sample(2.0), sample(3.0)])
    page = timings(found.timings, found.models)
    assert "| n | enqueue ms | H2D ms | GPU compute ms | D2H ms | host latency ms | queries/s |" in page
    assert "| 8/3 | prefill | pruned | 9.00 | 3 | 100.000 | 2000.000 | 8000.000 | 4000.000 | 14000.000 | 0.1 |" in page
    assert "pruned in TensorRT: cuda graphs: off; spin wait: as CUDA chooses; data transfers: token ids in, logits" in page
    assert "sparse kernels: refuted." in page


def test_nothing_is_said_of_them_where_no_engine_ran(engine):
    found = recorded(engine, [Sample(1.0, [1.0, 1.0], 0.0)] * 3)
    assert found.formulas == FORMULAS
    assert not any("parts" in row for row in found.as_record()["timings"])
    assert "parts" not in found.as_record()["samples"][WORKLOAD.name]["pruned"]
    assert "enqueue" not in timings(found.timings, found.models)
