"""In place of TensorRT and of CUDA's streams and events: the engine's calls are ONNX Runtime's, at the addresses it is given."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from exporters.tensorrt import session
from exporters.tensorrt.session import EngineDecoder
from pipeline.common.files import write_json

DataType = Enum("DataType", "FLOAT HALF BF16 INT64 INT32")
TensorIOMode = Enum("TensorIOMode", "INPUT OUTPUT")
OF_NAMES = {"tensor(float)": (DataType.FLOAT, np.float32), "tensor(int64)": (DataType.INT64, np.int64)}
LONGEST = 64  # tokens of a prompt that the engine's profile takes


class Gpu:
    """A clock that moves when something is put on the stream, and what was."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, list[str]()

    def works(self, what: str, milliseconds: float) -> None:
        self.now += milliseconds
        self.done.append(what)

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        found = SimpleNamespace(at=None)
        found.record = lambda stream: setattr(found, "at", self.now)
        found.elapsed_time = lambda end: end.at - found.at
        return found


class Engine:
    """A graph that answers as an engine would."""

    def __init__(self, graph: Path, gpu: Gpu) -> None:
        self.session, self.gpu = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"]), gpu
        self.given = {value.name: value for value in self.session.get_inputs()}
        self.told = {value.name: value for value in self.session.get_outputs()}
        self._names = [*self.given, *self.told]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, place: int) -> str:
        return self._names[place]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.given else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in (self.given | self.told)[name].shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        return OF_NAMES[(self.given | self.told)[name].type][0]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    """Calls of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.profiles = engine, list[int]()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}

    def set_optimization_profile_async(self, number: int, stream: int) -> None:
        self.profiles.append(number)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return name != "input_ids" or shape[1] <= LONGEST

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address
        self._places[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, sequence = self._shapes["input_ids"]
        shape = self._engine.get_tensor_shape(name)
        if name == "logits":
            return batch, sequence if shape[1] < 0 else shape[1], shape[2]
        return batch, shape[1], self._shapes["attention_mask"][1], shape[3]

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {name: self._read(name, value) for name, value in self._engine.given.items()}
        for name, array in zip(self._engine.told, self._engine.session.run(None, feeds), strict=True):
            ctypes.memmove(self._places[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
        self._engine.gpu.works("compute", 5.0)
        return True

    def _read(self, name: str, value: Any) -> np.ndarray:
        array = np.empty(self._shapes[name], OF_NAMES[value.type][1])
        ctypes.memmove(array.ctypes.data, self._places[name], array.nbytes)
        return array


def engine_folder(onnx: Path, out: Path) -> Path:
    """What the build stage would have written beside the graph's other files."""
    out.mkdir()
    for name in ("checkpoint_config.json", "export.json"):
        (out / name).write_bytes((onnx / name).read_bytes())
    (out / "model.engine").write_bytes(str(onnx / "model.onnx").encode())
    record = {"builder": "tensorrt", "engine": "model.engine", "versions": {}, "gpus": [], "sparse_kernels": {"verdict": "proved"}}
    write_json(out / "build.json", record | {"profiles": [{"name": "prefill"}, {"name": "decode"}]})
    return out


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Puts itself in place of both; copies between memories take a millisecond in and two out."""
    gpu = Gpu()
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: Engine(Path(data.decode()), gpu))
    trt = SimpleNamespace(Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}), TensorIOMode=TensorIOMode)
    trt.Runtime, trt.__version__ = (lambda logger: runtime), "10.0"
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(session, "demand_builder", lambda name: SimpleNamespace(module=name))
    monkeypatch.setattr(EngineDecoder, "device", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=7, synchronize=lambda: gpu.done.append("waited")))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    _copies_take_time(monkeypatch, gpu)
    return gpu


def _copies_take_time(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    to, copy = torch.Tensor.to, torch.Tensor.copy_

    def moved(tensor: torch.Tensor, *place: Any, non_blocking: bool = False, **more: Any) -> torch.Tensor:
        if non_blocking:
            gpu.works("in", 1.0)
        return to(tensor, *place, **more)

    def copied(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if non_blocking:
            gpu.works("out", 2.0)
        return copy(tensor, source)

    monkeypatch.setattr(torch.Tensor, "to", moved)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
