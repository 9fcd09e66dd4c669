"""Running an engine on the GPU that it was built for: prompt, steps with the cache, greedy decoding.

The cache stays there, in torch's tensors. An engine writes the present beside the past, so a past can be continued again,
and nothing crosses between GPU and main memory but token ids, the logits of the last position and, where asked for, all.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.folder import EXPORT
from exporters.onnx.files import PAST, PRESENT
from exporters.onnx.running.shapes import DECODE, PREFILL
from exporters.tensorrt.builders import demand_builder
from exporters.tensorrt.decoder import DevicePast, Ids
from exporters.tensorrt.folder import RECORD
from exporters.tensorrt.parts import COMPUTE, D2H, H2D, PartTimer
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json

KINDS = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32}


class EngineDecoder:
    """An engine folder.

    Attributes:
        inputs: names that the engine takes.
        caches: cache input to (KV heads, head_dim, dtype).
        parts: what every call's time went into.
        said: logits of the last position of the last call, (batch, vocabulary), in main memory.

    Raises:
        TrimlineError: no engine in the folder, no GPU, TensorRT missing or of another version than the engine's.
    """

    device = "cuda"
    said: torch.Tensor

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        record = _record(self.folder)
        builder = demand_builder(record["builder"])
        if not torch.cuda.is_available():
            raise TrimlineError("This torch sees no CUDA device, and engines keep their tensors in its memory.", "Install a CUDA build.")
        trt = importlib.import_module(builder.module)
        exported = read_json(self.folder / EXPORT)
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
        self.parts = PartTimer(self._stream)
        self._active = -1
        self._nothing = torch.empty(256, dtype=torch.uint8, device=self.device)  # an empty tensor has no address; TensorRT takes no null

    def empty(self, batch: int = 1, capacity: int = 0) -> DevicePast:
        """A past without tokens; it grows with every call."""
        values = {
            name: torch.empty((batch, heads, 0, width), dtype=dtype, device=self.device)
            for name, (heads, width, dtype) in self.caches.items()
        }
        return DevicePast(batch, 0, values)

    def run(self, ids: Ids, past: DevicePast) -> tuple[torch.Tensor, DevicePast]:
        """One call, finished when it returns: token ids (batch, sequence) to logits on the GPU and the longer past.

        What a program needs to choose the next token, ``said``, has been copied to main memory by then.

        Raises:
            TrimlineError: the engine does not take these shapes, or fails.
        """
        sequence, total = ids.shape[1], past.length + ids.shape[1]
        self.parts.begin()
        with torch.cuda.stream(self._stream):
            feeds = self._feeds(ids, past)
            outputs = self._call(feeds, DECODE if sequence == 1 and past.length else PREFILL)
            logits = outputs["logits"]
            said = self._in_main_memory((len(ids), self.vocab), logits.dtype)
            with self.parts.on_gpu(D2H):
                said.copy_(logits[:, -1], non_blocking=True)
        self._stream.synchronize()
        self.said = said
        values = {name: outputs[name.replace(PAST, PRESENT)] for name in self.caches}
        return logits, DevicePast(len(ids), total, values)

    def step(self, ids: Ids, past: DevicePast) -> tuple[NDArray[np.float32], DevicePast]:
        """As ``run``, with all logits as an fp32 array in main memory."""
        logits, present = self.run(ids, past)
        self.parts.forget()
        return logits.float().cpu().numpy(), present

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits (batch, sequence or 1, vocabulary), computed without a past."""
        return self.step(ids, self.empty(len(ids)))[0]

    def greedy(self, ids: Ids, tokens: int) -> Ids:
        """The ``tokens`` most likely next tokens of prompts of one length, (batch, tokens)."""
        past, chosen = self.empty(len(ids)), list[Ids]()
        while len(chosen) < tokens:
            _, past = self.run(chosen[-1][:, None] if chosen else ids, past)
            self.parts.forget()
            chosen.append(self.said.argmax(-1).numpy())
        return np.stack(chosen, axis=1)

    def _feeds(self, ids: Ids, past: DevicePast) -> dict[str, torch.Tensor]:
        """What the engine reads, on the GPU; only token ids come from main memory."""
        batch, total = len(ids), past.length + ids.shape[1]
        given = self._in_main_memory(ids.shape, torch.int64)
        given.numpy()[:] = ids
        with self.parts.on_gpu(H2D):
            tokens = given.to(self.device, non_blocking=True)
        feeds = {
            "input_ids": tokens,
            "attention_mask": torch.ones((batch, total), dtype=torch.long, device=self.device),
            "position_ids": torch.arange(past.length, total, device=self.device).expand(batch, -1).contiguous(),
        }
        return {name: value for name, value in feeds.items() if name in self.inputs} | past.values

    def _call(self, feeds: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
        """Puts one call on the stream; outputs by name, not there yet."""
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
            outputs[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=self._dtype(name), device=self.device)
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        with self.parts.on_gpu(COMPUTE), self.parts.on_processor():
            done = self._context.execute_async_v3(self._stream.cuda_stream)
        if not done:
            raise TrimlineError(f"The engine in {self.folder} failed.", "Build it again on this machine.")
        return outputs

    def _choose(self, number: int) -> None:
        if number != self._active:
            self._context.set_optimization_profile_async(number, self._stream.cuda_stream)
            self._active = number

    def _in_main_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that a GPU copies from and to by itself: in pages that stay where they are."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.device == "cuda")

    def _dtype(self, name: str) -> torch.dtype:
        return KINDS[self._engine.get_tensor_dtype(name).name]


def _record(folder: Path) -> dict[str, Any]:
    if not (folder / RECORD).is_file():
        raise TrimlineError(f"There is no build.json in {folder}.", "Give a folder that `trimline build` wrote.")
    return dict(read_json(folder / RECORD))
