"""Running an engine on the GPU that it was built for: prompt, steps with the cache, greedy decoding."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from exporters.tensorrt.builders import demand_builder
from exporters.tensorrt.decoder import PAST, DeviceDecoder
from pipeline.checkpoint import read_json
from pipeline.errors import TrimlineError

KINDS = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32}


class EngineDecoder(DeviceDecoder):
    """An engine folder.

    Raises:
        TrimlineError: no engine in the folder, no GPU, TensorRT missing or of another version than the engine's.
    """

    device = "cuda"

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        record = _record(self.folder)
        builder = demand_builder(record["builder"])
        if not torch.cuda.is_available():
            raise TrimlineError("This torch sees no CUDA device, and engines keep their tensors in its memory.", "Install a CUDA build.")
        trt = importlib.import_module(builder.module)
        exported = read_json(self.folder / "export.json")
        self.precision = str(exported["precision"])
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._engine = trt.Runtime(self._logger).deserialize_cuda_engine((self.folder / record["engine"]).read_bytes())
        if self._engine is None:
            raise TrimlineError(
                f"TensorRT {trt.__version__} cannot open {self.folder}, which {record['versions']} built on {record['gpus']}.",
                "Build it again on this machine.",
            )
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self.inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self.inputs]
        shapes = {name: self._engine.get_tensor_shape(name) for name in names}
        self.caches = {name: (shapes[name][1], shapes[name][3], self._dtype(name)) for name in self.inputs if name.startswith(PAST)}
        self.vocab = int(shapes["logits"][-1])
        self._profiles = {profile["name"]: number for number, profile in enumerate(record["profiles"])}
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._active = -1
        self._nothing = torch.empty(256, dtype=torch.uint8, device="cuda")  # an empty tensor has no address, and TensorRT takes no null

    def call(self, feeds: dict[str, Any], kind: str) -> dict[str, Any]:
        self._stream.wait_stream(torch.cuda.current_stream())
        self._choose(self._profiles[kind])
        for name, value in feeds.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise TrimlineError(
                    f"The engine takes no {name} of shape {tuple(value.shape)} in its profile {kind}.",
                    "Build it for longer prompts or larger batches: name them as workloads.",
                )
            self._context.set_tensor_address(name, value.data_ptr() or self._nothing.data_ptr())
        outputs = {}
        for name in self._outputs:
            outputs[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=self._dtype(name), device="cuda")
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise TrimlineError(f"The engine in {self.folder} failed.", "Build it again on this machine.")
        self._stream.synchronize()
        return outputs

    def _choose(self, number: int) -> None:
        if number != self._active:
            self._context.set_optimization_profile_async(number, self._stream.cuda_stream)
            self._active = number

    def _dtype(self, name: str) -> torch.dtype:
        return KINDS[self._engine.get_tensor_dtype(name).name]


def _record(folder: Path) -> dict[str, Any]:
    if not (folder / "build.json").is_file():
        raise TrimlineError(f"There is no build.json in {folder}.", "Give a folder that `trimline build` wrote.")
    return dict(read_json(folder / "build.json"))
