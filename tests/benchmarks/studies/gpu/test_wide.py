"""Speeds at large widths: what runs on a GPU, at tiny widths on the processor."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from benchmarks.formulas.roofline import Ceilings
from benchmarks.recipe import BenchmarkSlice
from benchmarks.studies.gpu.wide import STEPS, WORKLOADS, checkpoints, graph, table, timed
from benchmarks.studies.memory.random_model import LLAMA_2_7B
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions

HERE = RunOptions(threads=1)
TINY = LLAMA_2_7B | {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
RECIPE = BenchmarkSlice.model_validate({"workloads": ["8/1", "4/3x2"], "rounds": 4, "rounds_per_opening": 2, "minimum_seconds": 0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return checkpoints(2, tmp_path_factory.mktemp("wide"), HERE, TINY)


def test_what_is_compared_is_smaller_and_2_4(folders):
    assert list(folders) == ["dense", *STEPS]
    widths = {name: [block.ffn for block in Checkpoint(folder).geometry.blocks] for name, folder in folders.items()}
    assert widths["dense"] == [512, 512]
    assert widths["pruned"] == widths["pruned-2-4"]
    assert sum(widths["pruned"]) == 768
    weights = load_file(folders["pruned-2-4"] / "model.safetensors")
    assert all(two_four_fraction(weight) == 1.0 for name, weight in weights.items() if "_proj" in name)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_every_model_is_timed_in_turns_beside_dense(folders, runtime, tmp_path):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
        folders = {name: graph(folders[name], tmp_path / name) for name in ("dense", "pruned")}
    found = timed(runtime, folders, RECIPE, Ceilings(1e10, 1e11), HERE)
    others = [name for name in folders if name != "dense"]
    wanted = [(workload, metric) for workload, metric in (("8/1", "prefill"), ("4/3 ×2", "prefill"), ("4/3 ×2", "decode"))]
    assert [(one["workload"], one["metric"], one["model"]) for one in found] == [(*pair, name) for pair in wanted for name in others]
    for one in found:
        assert one["speed_up"]["rounds"] == 4
        assert len(one["seconds"]) == 4
        assert one["allowed"] > 1
    assert table(found).count("\n") == 1 + len(found)


def test_the_workloads_are_workloads():
    assert [workload.name for workload in BenchmarkSlice.model_validate({"workloads": WORKLOADS}).workloads] == [
        "2048/1",
        "128/33",
        "128/33 ×8",
    ]
