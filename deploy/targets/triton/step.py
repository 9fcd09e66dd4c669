"""Step models: one call of the decoder in Triton's ONNX Runtime and TensorRT backends, shapes from the graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.placing import copy
from deploy.targets.text import write_rendered, write_text
from deploy.targets.triton.engine import PLAN, EngineFacts
from exporters.onnx.files import GRAPH, LOWERING_KEY, WEIGHTS
from pipeline.common.errors import TrimlineError

TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.INT32: "TYPE_INT32",
}
IDS = "input_ids"
WARM_PAST, WARM_NEW = 1, 4
BATCH = 8
NO_ENGINE = f"""No engine is here: the run built none with TensorRT. (One of TensorRT-RTX is not Triton's, and is not placed.)

`trimline build` on a machine with the GPU that will serve makes `model.engine`. It comes here as `{PLAN}`; then raise
`max_batch_size` in `../config.pbtxt` to what it was built for, and name its profiles. `trimline verify` names both files as changed from then
on; a recipe with `build: {{}}` does all of that by itself.
"""


@dataclass(frozen=True)
class StepTensor:
    """An input or output as config.pbtxt names it.

    Attributes:
        name: as in the graph.
        type: Triton's data type.
        dims: without the batch; -1 where they vary.
        warm: the same in the warm-up request.
        data: file of the warm-up's values; empty: zeros.
    """

    name: str
    type: str
    dims: tuple[int, ...]
    warm: tuple[int, ...] = ()
    data: str = ""


@dataclass(frozen=True)
class StepGraph:
    """What the two configs are written from."""

    lowering: str
    inputs: tuple[StepTensor, ...]
    outputs: tuple[StepTensor, ...]

    @classmethod
    def read(cls, graph: Path) -> StepGraph:
        """Reads names, types and shapes of an exported graph; no weights.

        Raises:
            TrimlineError: a tensor of a type that Triton has no name for, or whose first dimension is no batch.
        """
        model = onnx.load(graph, load_external_data=False)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        inputs = tuple(_warmed(_tensor(value)) for value in model.graph.input)
        return cls(metadata.get(LOWERING_KEY, "portable"), inputs, tuple(_tensor(value) for value in model.graph.output))

    def portable(self) -> StepGraph:
        """The same model in the portable lowering, which TensorRT parses: it is told positions, the fused graph counts them."""
        if any(tensor.name == "position_ids" for tensor in self.inputs):
            return self
        positions = _warmed(StepTensor("position_ids", "TYPE_INT64", (-1,)))
        place = 1 + [tensor.name for tensor in self.inputs].index("attention_mask")
        return StepGraph("portable", (*self.inputs[:place], positions, *self.inputs[place:]), self.outputs)

    def fitted(self, engine: EngineFacts) -> StepGraph:
        """The same for an engine: sizes that its profiles fix are fixed, and the warm-up lies within them.

        Raises:
            TrimlineError: the engine takes other inputs than this graph.
        """
        taken = {name: engine.dims(name) for name in engine.profiles[0]}
        if taken.keys() != {tensor.name for tensor in self.inputs} or not all(
            _fits(tensor.dims, taken[tensor.name]) for tensor in self.inputs
        ):
            raise TrimlineError(f"The engine {engine.file} takes other inputs than the packaged graph.", "Build it from this graph again.")
        new = min(WARM_NEW, *engine.most(IDS))
        return replace(self, inputs=tuple(_warmed(replace(tensor, dims=engine.dims(tensor.name)), new) for tensor in self.inputs))


def write_step_models(onnx_folder: Path, name: str, kind: str, out: Path, engine: EngineFacts | None) -> None:
    """Writes ``<name>-onnxruntime`` and ``<name>-tensorrt`` into ``out``: the graph with its weights, and the engine where there is one.

    Raises:
        TrimlineError: the engine takes other inputs than the graph, or Triton cannot serve the graph.
    """
    graph = StepGraph.read(onnx_folder / GRAPH)
    fused = graph.lowering == "fused"
    # A fused graph takes several new tokens after a past for one row only: requests that are right alone would fail together.
    values = {"backend": "onnxruntime", "platform": "", "file": GRAPH, "batch": BATCH, "batching": not fused, "kind": kind, "profiles": 0}
    version = _write(out / f"{name}-onnxruntime", graph, **values)
    for file in (GRAPH, WEIGHTS):
        if (onnx_folder / file).is_file():
            copy(onnx_folder / file, version / file)  # no link: onnx would refuse both, and ONNX Runtime one that leads elsewhere
    _write_plan(out / f"{name}-tensorrt", graph.portable(), engine)


def _write_plan(folder: Path, graph: StepGraph, engine: EngineFacts | None) -> None:
    values = {"backend": "tensorrt", "platform": "tensorrt_plan", "file": PLAN, "kind": "KIND_GPU"}
    if engine is None:
        # A plan refuses batches beyond its optimisation profiles; one row fits all of them.
        version = _write(folder, graph, **values, batch=1, batching=False, profiles=0)
        write_text(version / "README.md", NO_ENGINE)
        return
    batch, profiles = engine.batch, len(engine.profiles)
    version = _write(folder, graph.fitted(engine), **values, batch=batch, batching=batch > 1, profiles=profiles)
    engine.place(version)


def _write(folder: Path, graph: StepGraph, **values: Any) -> Path:
    """The config and its warm-up; returns the empty folder for the model itself."""
    new = next(tensor.warm[0] for tensor in graph.inputs if tensor.name == IDS)
    write_rendered(
        folder / "config.pbtxt", "triton.step.pbtxt", name=folder.name, inputs=graph.inputs, outputs=graph.outputs, new=new, **values
    )
    version, warm = folder / "1", folder / "warmup"
    for made in (version, warm):
        made.mkdir()
    for tensor in graph.inputs:
        if tensor.data:
            first = np.ones if tensor.data == "ones" else lambda n, t: np.arange(WARM_PAST, WARM_PAST + n, dtype=t)
            (warm / tensor.data).write_bytes(first(tensor.warm[0], np.int64).tobytes())
    return version


def _fits(ours: tuple[int, ...], taken: tuple[int, ...]) -> bool:
    """Whether an engine takes an input of the graph: the same sizes where the graph fixes them."""
    return len(ours) == len(taken) and all(size in (-1, other) for size, other in zip(ours, taken, strict=True))


def _tensor(value: onnx.ValueInfoProto) -> StepTensor:
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    if kind.elem_type not in TYPES or not dims or dims[0] != -1:
        raise TrimlineError(f"Triton cannot serve the graph's {value.name} of shape {dims}.", "Export it again with this version.")
    return StepTensor(value.name, TYPES[kind.elem_type], tuple(dims[1:]))


def _warmed(tensor: StepTensor, new: int = WARM_NEW) -> StepTensor:
    """With a warm-up of ``new`` tokens after ``WARM_PAST``."""
    sizes = {IDS: (new, ""), "attention_mask": (WARM_PAST + new, "ones"), "position_ids": (new, "positions")}
    if tensor.name in sizes:
        size, data = sizes[tensor.name]
        return replace(tensor, warm=(size,), data=data)
    return replace(tensor, warm=tuple(WARM_PAST if dim == -1 else dim for dim in tensor.dims))
