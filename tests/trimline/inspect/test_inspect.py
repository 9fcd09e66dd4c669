"""What ``trimline inspect`` finds in checkpoints, plans, ONNX folders and packages, and how it shows it."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.checkpoints.modelling import profile_of
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan, Step
from pipeline.plan.selection import Selection
from pipeline.rebuild.config import smaller_config
from pipeline.rebuild.surgery import Cut
from tests.tiny import tiny_model
from trimline.inspect import BlockWidth, inspect_folder, render_inspection
from trimline.inspect.read import narrowest_profile
from trimline.inspect.view import bar


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense") / "model")


def plan_for(folder) -> Plan:
    """Block 2 goes, block 1 loses its FFN, the others keep 32 of 96 channels."""
    checkpoint = Checkpoint(folder)
    everything = Selection.everything(checkpoint.geometry)
    ffn = (tuple(range(32)), (), everything.ffn[2], tuple(range(0, 96, 3)))
    selection = Selection((0, 1, 3), ffn, everything.kv_groups)
    return Plan(checkpoint.geometry.family, selection, (Step("by hand on ffn", {}, {}, {}),))


@pytest.fixture(scope="module")
def plan(dense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    plan_for(dense).write(folder)
    return folder


@pytest.fixture(scope="module")
def smaller(dense, tmp_path_factory):
    folder, checkpoint, plan = tmp_path_factory.mktemp("smaller"), Checkpoint(dense), plan_for(dense)
    write_checkpoint(folder, smaller_config(checkpoint.config, plan, Profile.FREE), Cut(checkpoint, plan))
    return folder


def shown(inspection, width=100) -> str:
    output = io.StringIO()
    render_inspection(inspection, Console(file=output, width=width))
    return output.getvalue()


def test_dense_checkpoint(dense):
    found = inspect_folder(dense)
    held = sum(tensor.numel() for _, tensor in Checkpoint(dense).tensors())
    assert (found.kind, found.parameters) == ("checkpoint", held)
    assert found.blocks == tuple(BlockWidth(i, 96, 2) for i in range(4))
    assert found.bytes == (dense / "model.safetensors").stat().st_size
    assert len(found.patterns) == 4 * 7
    assert all(pattern.two_four < 0.05 for pattern in found.patterns)
    assert next(row for row in found.consumers if row.consumer == "transformers (stock)").loads


def test_smaller_checkpoint(smaller):
    found = inspect_folder(smaller)
    assert found.blocks == (BlockWidth(0, 32, 2), BlockWidth(1, 0, 2), BlockWidth(2, 32, 2))
    assert "profile free" in found.title
    refused = next(row for row in found.consumers if row.consumer == "transformers (stock)")
    assert not refused.loads
    assert refused.change
    text = shown(found)
    assert "absent" in text
    assert "no" in text.split("transformers (stock)")[1].split("\n")[0]


def test_plan_alone(plan):
    found = inspect_folder(plan)
    assert found.blocks == (BlockWidth(0, 32, 2), BlockWidth(1, 0, 2), BlockWidth(2, 0, 0), BlockWidth(3, 32, 2))
    assert found.parameters is None
    assert "Name the dense checkpoint" in shown(found)


def test_plan_with_its_dense_model_foretells_the_result(plan, dense, smaller):
    found = inspect_folder(plan, source=dense)
    assert found.parameters == inspect_folder(smaller).parameters
    assert [row.loads for row in found.consumers if row.consumer == "vLLM"] == [True]  # these sizes fit decilm


def test_two_four_of_a_checkpoint(dense, tmp_path):
    checkpoint = Checkpoint(dense)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = dict(checkpoint.tensors())
    tensors[name] = tensors[name] * torch.tensor([1, 0, 0, 1] * 24)
    write_checkpoint(tmp_path, checkpoint.config, tensors)
    found = {pattern.name: pattern.two_four for pattern in inspect_folder(tmp_path).patterns}
    assert [tensor for tensor, fraction in found.items() if fraction == 1.0] == [name]
    line = next(line for line in shown(inspect_folder(tmp_path)).splitlines() if "down_proj" in line)
    assert "1 of 4" in line
    assert "100.0 %" in line


def write_graph(folder, weight: np.ndarray, gemm: np.ndarray, external: bool) -> None:
    """y = x·W, then z = y·Gᵀ; W has to be 2:4 down its columns and G along its rows."""
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(gemm, "g")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Gemm", ["y", "g"], ["z"], transB=1)]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", gemm.shape[0]])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, folder / "model.onnx", save_as_external_data=external, location="model.onnx.data", size_threshold=0)


@pytest.mark.parametrize("external", [False, True])
def test_onnx(tmp_path, external):
    weight = np.ones((8, 4), np.float32)
    weight[::2] = 0  # every column: 0 1 0 1 …; every row is all zeros or all ones
    gemm = np.tile(np.array([1, 0, 0, 1], np.float32), (6, 1))
    write_graph(tmp_path, weight, gemm, external)
    found = inspect_folder(tmp_path)
    assert found.kind == "onnx"
    assert found.graph.opset == 18
    assert found.graph.inputs == {"x": "float[batch, 8]"}
    assert found.graph.outputs == {"z": "float[batch, 6]"}
    assert found.graph.operators == {"ai.onnx": {"Gemm": 1, "MatMul": 1}}
    assert found.graph.initialiser_bytes == weight.nbytes + gemm.nbytes
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert {pattern.name: pattern.two_four for pattern in found.patterns} == {"w": 1.0, "g": 1.0}
    assert "MatMul × 1" in shown(found)


def test_onnx_two_four_along_the_wrong_axis(tmp_path):
    write_graph(tmp_path, np.tile(np.array([1, 0, 0, 1], np.float32), (8, 1)), np.ones((6, 4), np.float32), external=False)
    assert {pattern.name: pattern.two_four for pattern in inspect_folder(tmp_path).patterns} == {"w": 0.5, "g": 0.0}


def test_onnx_whose_weights_are_missing(tmp_path):
    write_graph(tmp_path, np.ones((8, 4), np.float32), np.ones((6, 4), np.float32), external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(TrimlineError, match="The weight w cannot be read"):
        inspect_folder(tmp_path)


def test_a_file_that_is_no_onnx(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff\xffnot a graph")
    with pytest.raises(TrimlineError, match=r"model\.onnx"):
        inspect_folder(tmp_path)


def test_a_package_is_read_through_its_checkpoint(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "model")
    assert inspect_folder(tmp_path).parameters == inspect_folder(dense).parameters


@pytest.mark.parametrize("name", ["missing", ""])
def test_nothing_to_inspect(tmp_path, name):
    with pytest.raises(TrimlineError, match="folder|holds neither"):
        inspect_folder(tmp_path / name)


def test_the_record_is_json(dense):
    record = json.loads(json.dumps(inspect_folder(dense).as_record()))
    assert record["blocks"][3] == {"number": 3, "ffn": 96, "kv_groups": 2, "experts": 0}


@pytest.mark.parametrize(("value", "drawn"), [(0, ""), (8, "████"), (4, "██"), (1, "▌"), (5, "██▌")])
def test_bars_have_the_length_of_their_value(value, drawn):
    assert bar(value, 8, 4) == drawn


def test_profiles(dense):
    geometry = Geometry.from_config(Checkpoint(dense).config)
    shapes = {
        Profile.UNIFORM: (BlockShape(64, 2), BlockShape(64, 2)),
        Profile.DECILM: (BlockShape(64, 2), BlockShape(32, 0)),
        Profile.FREE: (BlockShape(64, 2), BlockShape(64, 1)),
    }
    for profile, blocks in shapes.items():
        assert narrowest_profile(geometry.with_blocks(blocks)) is profile
    assert profile_of({"block_configs": [], "architectures": ["DeciLMForCausalLM"]}) is Profile.DECILM
    assert profile_of({"block_configs": [], "architectures": ["Other"]}) is Profile.FREE
