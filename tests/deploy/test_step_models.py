"""Step models for Triton's other backends: configs that say what the graph and the engine are, and the models themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.add import add_targets
from deploy.package import package
from deploy.recipe import PackageSlice
from deploy.targets.triton.engine import EngineFacts
from deploy.targets.triton.step import StepGraph, write_step_models
from deploy.verify import verify
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.running.shapes import EngineRequest, graph_inputs, profiles_for
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.deploy.model_config import read_config
from tests.deploy.parts import OPTIONS

PLAN = b"a stand-in for an engine"
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}


def engine_of(graph: Path, folder: Path, *requests: EngineRequest, builder: str = "tensorrt") -> Path:
    """A folder as the build stage leaves it, with the profiles that it would build for; the engine itself is none."""
    folder.mkdir()
    profiles = [profile.as_record() for profile in profiles_for(graph_inputs(graph / "model.onnx"), requests)]
    (folder / "build.json").write_text(json.dumps({"builder": builder, "gpus": ["some GPU"], "profiles": profiles}))
    (folder / "model.engine").write_bytes(PLAN)
    return folder


def config_of(folder: Path) -> Any:
    return read_config((folder / "config.pbtxt").read_text())


def tensors(entries: Any) -> dict[str, tuple[str, list[int]]]:
    """Name to type and dims, as a config says them."""
    kinds = {entry.name: entry.DESCRIPTOR.fields_by_name["data_type"].enum_type.values[entry.data_type].name for entry in entries}
    return {entry.name: (kinds[entry.name], list(entry.dims)) for entry in entries}


def warm_feeds(folder: Path) -> dict[str, np.ndarray]:
    feeds = {}
    for entry in config_of(folder).model_warmup[0].inputs:
        shape = (1, *entry.value.dims)
        dtype = np.float32 if entry.key.startswith("past") else np.int64
        raw = (folder / "warmup" / entry.value.input_data_file).read_bytes() if entry.value.input_data_file else None
        feeds[entry.key] = np.zeros(shape, dtype) if raw is None else np.frombuffer(raw, dtype).reshape(shape)
    return feeds


@pytest.fixture(params=["fused", "portable"])
def graph(request: pytest.FixtureRequest, graphs: dict[str, Path]) -> Path:
    return graphs[request.param]


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def test_the_model_in_the_folder_has_the_tensors_that_its_config_names(graph: Path, tmp_path: Path) -> None:
    write_step_models(graph, "m", "KIND_CPU", tmp_path, None)
    folder = tmp_path / "m-onnxruntime"
    assert {path.name for path in (folder / "1").iterdir()} == {"model.onnx", "model.onnx.data"}
    config, session = config_of(folder), OnnxDecoder(folder / "1", 1).session
    assert config.default_model_filename == "model.onnx"
    for ours, theirs in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        is_ = {entry.name: (TYPES[entry.type], [dim if isinstance(dim, int) else -1 for dim in entry.shape[1:]]) for entry in theirs}
        assert tensors(ours) == is_
    heads = {entry.dims[0] for entry in config.input if entry.name.startswith("past")}
    assert heads == {1, 2}  # each block's own
    assert (len(config.dynamic_batching.ListFields()) > 0) == (graph.name == "portable")
    outputs = session.run(None, warm_feeds(folder))
    assert all(np.isfinite(array).all() for array in outputs)


def test_both_copies_of_the_weights_can_be_read(parts: Any, tmp_path: Path) -> None:
    """onnx refuses weights with several hard links, whichever of the two is opened."""
    package(parts, PackageSlice(targets=("triton",)), tmp_path, Events())
    for folder in (tmp_path / "onnx", tmp_path / "serve/triton/step/model-onnxruntime/1"):
        weights = onnx.load(folder / "model.onnx").graph.initializer
        assert sum(len(tensor.raw_data) for tensor in weights) > 10_000
        assert (folder / "model.onnx.data").read_bytes() == (parts.onnx / "model.onnx.data").read_bytes()
    assert verify(tmp_path) == []


# --- TensorRT --------------------------------------------------------------------------------------------------------


def test_what_tensorrt_gets_is_said_of_the_portable_graph_whichever_was_packaged(graphs: dict[str, Path]) -> None:
    derived, real = StepGraph.read(graphs["fused"] / "model.onnx").portable(), StepGraph.read(graphs["portable"] / "model.onnx")
    assert {tensor.name: tensor for tensor in derived.inputs} == {tensor.name: tensor for tensor in real.inputs}
    assert {tensor.name: tensor for tensor in derived.outputs} == {tensor.name: tensor for tensor in real.outputs}


def test_an_engine_brings_its_batch_its_profiles_and_its_sizes(graphs: dict[str, Path], tmp_path: Path) -> None:
    engine = engine_of(graphs["portable"], tmp_path / "engine", EngineRequest(512, 17), EngineRequest(64, 9, 6))
    write_step_models(graphs["portable"], "m", "KIND_CPU", tmp_path / "step", EngineFacts.of(engine))
    folder = tmp_path / "step" / "m-tensorrt"
    assert (folder / "1" / "model.plan").samefile(engine / "model.engine")
    assert json.loads((folder / "1" / "build.json").read_text())["gpus"] == ["some GPU"]
    assert not (folder / "1" / "README.md").exists()
    config = config_of(folder)
    assert config.default_model_filename == "model.plan"
    assert config.max_batch_size == 6
    assert len(config.dynamic_batching.ListFields()) == 1
    [group] = config.instance_group
    assert (group.kind, list(group.profile)) == (1, ["0", "1"])
    assert tensors(config.input) == tensors(config_of(tmp_path / "step" / "m-onnxruntime").input)  # every free size stays free
    assert warm_feeds(folder)["input_ids"].shape == (1, 4)


def test_what_an_engine_fixes_is_fixed_and_warmed_up_within_it(graphs: dict[str, Path], tmp_path: Path) -> None:
    engine = EngineFacts.of(engine_of(graphs["portable"], tmp_path / "engine", EngineRequest(1, 30)))
    write_step_models(graphs["portable"], "m", "KIND_CPU", tmp_path / "step", engine)
    folder = tmp_path / "step" / "m-tensorrt"
    config = config_of(folder)
    assert config.max_batch_size == 1
    assert len(config.dynamic_batching.ListFields()) == 0
    found = tensors(config.input)
    assert (found["input_ids"][1], found["position_ids"][1], found["attention_mask"][1]) == ([1], [1], [-1])
    feeds = warm_feeds(folder)
    assert {name: feeds[name].tolist() for name in ("position_ids", "attention_mask")} == {
        "position_ids": [[1]],
        "attention_mask": [[1, 1]],
    }
    assert np.isfinite(OnnxDecoder(graphs["portable"], 1).session.run(None, feeds)[0]).all()


@pytest.mark.parametrize("builder", [None, "tensorrt_rtx"])
def test_without_an_engine_that_triton_loads_the_folder_says_so(graphs: dict[str, Path], builder: str | None, tmp_path: Path) -> None:
    built = engine_of(graphs["portable"], tmp_path / "engine", EngineRequest(8, 4), builder=builder) if builder else None
    write_step_models(graphs["portable"], "m", "KIND_CPU", tmp_path / "step", EngineFacts.of(built))
    folder = tmp_path / "step" / "m-tensorrt"
    assert {path.name for path in (folder / "1").iterdir()} == {"README.md"}
    assert "One of TensorRT-RTX is not Triton's" in (folder / "1" / "README.md").read_text()
    assert config_of(folder).max_batch_size == 1


@pytest.mark.slow
def test_a_package_with_an_engine_verifies_and_keeps_it_when_a_server_is_added(parts: Any, tmp_path: Path) -> None:
    portable = dataclasses.replace(parts, onnx=_portable(parts.model, tmp_path / "onnx"))
    engine = engine_of(portable.onnx, tmp_path / "engine", EngineRequest(32, 8, 2))
    for folder in (tmp_path / "package", tmp_path / "more"):
        folder.mkdir()
    recipe = PackageSlice(targets=("triton",))
    package(dataclasses.replace(portable, engine=engine, recipe="package: {targets: [triton]}\n"), recipe, tmp_path / "package", Events())
    add_targets(tmp_path / "package", ("vllm",), OPTIONS, tmp_path / "more", Events())
    for folder in (tmp_path / "package", tmp_path / "more"):
        assert verify(folder) == []
        placed = folder / "serve/triton/step/model-tensorrt"
        assert (placed / "1" / "model.plan").samefile(engine / "model.engine")
        assert config_of(placed).max_batch_size == 2
        assert "for up to 2 rows a request" in (folder / "serve/triton/README.md").read_text()
        files = json.loads((folder / "manifest.json").read_text())["files"]
        assert {name for name, entry in files.items() if entry["measured"] and name.startswith("serve/")} == {
            f"serve/triton/step/model-tensorrt/1/{name}" for name in ("build.json", "model.plan")
        }


def test_an_engine_of_another_model_is_refused(parts: Any, graphs: dict[str, Path], tmp_path: Path) -> None:
    engine = EngineFacts.of(engine_of(graphs["portable"], tmp_path / "engine", EngineRequest(8, 4)))
    with pytest.raises(TrimlineError, match="takes other inputs than the packaged graph"):
        write_step_models(parts.onnx, "m", "KIND_CPU", tmp_path / "step", engine)


def test_an_engine_of_the_model_with_more_heads_is_refused(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = engine_of(graphs["portable"], tmp_path / "engine", EngineRequest(8, 4))
    record = json.loads((folder / "build.json").read_text())
    for profile in record["profiles"]:
        for shape in profile["shapes"]["past_key_values.0.key"]:
            shape[1] += 1
    (folder / "build.json").write_text(json.dumps(record))
    with pytest.raises(TrimlineError, match="takes other inputs than the packaged graph"):
        write_step_models(graphs["portable"], "m", "KIND_CPU", tmp_path / "step", EngineFacts.of(folder))


@pytest.mark.parametrize(
    "profiles",
    [
        None,
        [],
        [{}],
        [{"shapes": {}}],
        [{"shapes": []}],
        [{"shapes": {"input_ids": [[1, 1], [1, 8]]}}],
        [{"shapes": {"input_ids": [[1, 1], [1, 8], [1]]}}],
        [{"shapes": {"input_ids": [[], [], []]}}],
        [{"shapes": {"input_ids": [[1, 1], [1, 8], [1, "8"]]}}],
        [{"shapes": {"input_ids": [[1, 1], [1, 8], [1, 8]]}}, {"shapes": {"other": [[1, 1], [1, 8], [1, 8]]}}],
        [{"shapes": {"input_ids": [[1, 1], [1, 8], [1, 8]]}}, {"shapes": {"input_ids": [[1], [1], [1]]}}],
    ],
)
def test_a_record_that_no_build_writes_is_refused(tmp_path: Path, profiles: Any) -> None:
    (tmp_path / "build.json").write_text(json.dumps({"builder": "tensorrt", "profiles": profiles}))
    (tmp_path / "model.engine").write_bytes(PLAN)
    with pytest.raises(TrimlineError, match="does not say which shapes"):
        EngineFacts.of(tmp_path)
    (tmp_path / "model.engine").unlink()
    with pytest.raises(TrimlineError, match=r"no model\.engine"):
        EngineFacts.of(tmp_path)


def _portable(model: Path, folder: Path) -> Path:
    from exporters.onnx.stage import export
    from exporters.recipe import ExportSlice

    folder.mkdir()
    export(model, ExportSlice(lowering="portable"), OPTIONS, folder, Events())
    return folder
