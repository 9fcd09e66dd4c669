"""Configs of step models: one call of the decoder in Triton's ONNX Runtime and TensorRT backends, shapes from the graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploy.targets.text import write_rendered, write_text
from exporters.onnx.files import GRAPH, LOWERING_KEY
from exporters.tensorrt.stage import ENGINE
from pipeline.errors import TrimlineError

TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.INT32: "TYPE_INT32",
}
PAST = "past_key_values."
WARM_PAST, WARM_NEW = 1, 4
BATCH = 8


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


def write_step_models(onnx_folder: Path, name: str, kind: str, out: Path) -> None:
    """Writes ``<name>-onnxruntime`` and ``<name>-tensorrt`` into ``out``, without the models themselves."""
    graph = StepGraph.read(onnx_folder / GRAPH)
    fused = graph.lowering == "fused"
    # A fused graph takes several new tokens after a past for one row only: requests that are right alone would fail together.
    _write(out / f"{name}-onnxruntime", graph, backend="onnxruntime", platform="", file=GRAPH, batch=BATCH, batching=not fused, kind=kind)
    # A plan refuses batches beyond its optimisation profiles; one row fits all of them.
    plan = {"backend": "tensorrt", "platform": "tensorrt_plan", "file": ENGINE, "batch": 1, "batching": False}
    _write(out / f"{name}-tensorrt", graph.portable(), kind="KIND_GPU", **plan)


def _write(folder: Path, graph: StepGraph, **values: Any) -> None:
    tensors = {"inputs": graph.inputs, "outputs": graph.outputs, "new": WARM_NEW}
    write_rendered(folder / "config.pbtxt", "triton.step.pbtxt", name=folder.name, **tensors, **values)
    write_text(folder / "1" / "README.md", f"The model itself comes here, as `{values['file']}` with what belongs to it.\n")
    warm = folder / "warmup"
    warm.mkdir()
    for tensor in graph.inputs:
        if tensor.data:
            first = np.ones if tensor.data == "ones" else lambda n, t: np.arange(WARM_PAST, WARM_PAST + n, dtype=t)
            (warm / tensor.data).write_bytes(first(tensor.warm[0], np.int64).tobytes())


def _tensor(value: onnx.ValueInfoProto) -> StepTensor:
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    if kind.elem_type not in TYPES or not dims or dims[0] != -1:
        raise TrimlineError(f"Triton cannot serve the graph's {value.name} of shape {dims}.", "Export it again with this version.")
    return StepTensor(value.name, TYPES[kind.elem_type], tuple(dims[1:]))


def _warmed(tensor: StepTensor) -> StepTensor:
    """With a warm-up of ``WARM_NEW`` tokens after ``WARM_PAST``."""
    sizes = {"input_ids": (WARM_NEW, ""), "attention_mask": (WARM_PAST + WARM_NEW, "ones"), "position_ids": (WARM_NEW, "positions")}
    if tensor.name in sizes:
        size, data = sizes[tensor.name]
        return StepTensor(tensor.name, tensor.type, tensor.dims, (size,), data)
    warm = tuple(WARM_PAST if dim == -1 else dim for dim in tensor.dims)
    return StepTensor(tensor.name, tensor.type, tensor.dims, warm)
