"""Running an engine: prompt, steps with the cache, greedy decoding; the same calls as ``exporters.onnx.session.OnnxDecoder``.

Memory on the GPU is torch's. Each block's cache is one buffer; an engine writes the present beside the past, so there are
two, which change places after every call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.tensorrt.builders import demand_builder
from exporters.tensorrt.shapes import DECODE, PREFILL
from pipeline.checkpoint import read_json
from pipeline.errors import TrimlineError

PAST, PRESENT = "past_key_values.", "present."
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class EnginePast:
    """What the engine has seen: tokens of a batch, and per cache input a tensor (batch, KV heads, tokens, head_dim) on the GPU."""

    batch: int
    length: int = 0
    values: dict[str, Any] = field(default_factory=dict)


class EngineDecoder:
    """An engine folder on the GPU that it was built for.

    Raises:
        TrimlineError: no engine in the folder, no GPU, TensorRT missing or of another version than the engine's.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        record = _record(self.folder)
        builder = demand_builder(record["builder"])
        if not torch.cuda.is_available():
            raise TrimlineError("This torch sees no CUDA device, and engines keep their tensors in its memory.", "Install a CUDA build.")
        self._trt = __import__(builder.module)
        self.precision: str = record["precision"] if record["precision"] != "graph" else read_json(self.folder / "export.json")["precision"]
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._engine = self._trt.Runtime(self._logger).deserialize_cuda_engine((self.folder / record["engine"]).read_bytes())
        if self._engine is None:
            raise TrimlineError(
                f"TensorRT {self._trt.__version__} cannot open {self.folder}, which {record['versions']} built on {record['gpus']}.",
                "Build it again on this machine.",
            )
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self._caches = [name for name in names if name.startswith(PAST)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._profiles = {profile["name"]: number for number, profile in enumerate(record["profiles"])}
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._active = -1
        self.vocab = int(self._engine.get_tensor_shape("logits")[-1])

    def empty(self, batch: int = 1, capacity: int = 0) -> EnginePast:
        """A past without tokens."""
        shapes = {name: self._engine.get_tensor_shape(name) for name in self._caches}
        values = {
            name: torch.empty((batch, shape[1], 0, shape[3]), dtype=self._dtype(name), device="cuda") for name, shape in shapes.items()
        }
        return EnginePast(batch, 0, values)

    def run(self, ids: Ids, past: EnginePast) -> tuple[Any, EnginePast]:
        """One call: token ids (batch, sequence) to logits on the GPU, finished, and the longer past.

        Raises:
            TrimlineError: the shapes lie outside the engine's profiles.
        """
        batch, sequence = ids.shape
        total = past.length + sequence
        tokens = torch.from_numpy(np.ascontiguousarray(ids, np.int64)).cuda(non_blocking=True)
        feeds = {
            "input_ids": tokens,
            "attention_mask": torch.ones((batch, total), dtype=torch.long, device="cuda"),
            "position_ids": torch.arange(past.length, total, device="cuda").expand(batch, -1).contiguous(),
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs} | past.values
        outputs = self._call(feeds, DECODE if sequence == 1 and past.length else PREFILL)
        values = {name: outputs[name.replace(PAST, PRESENT)] for name in self._caches}
        return outputs["logits"], EnginePast(batch, total, values)

    def step(self, ids: Ids, past: EnginePast) -> tuple[NDArray[np.float32], EnginePast]:
        """As ``run``, with the logits as an fp32 array in main memory."""
        logits, present = self.run(ids, past)
        return logits.float().cpu().numpy(), present

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits (batch, sequence, vocabulary), computed without a past."""
        return self.step(ids, self.empty(len(ids)))[0]

    def greedy(self, ids: Ids, tokens: int) -> Ids:
        """The ``tokens`` most likely next tokens of prompts of one length, (batch, tokens)."""
        logits, past = self.step(ids, self.empty(len(ids)))
        chosen = [logits[:, -1].argmax(-1)]
        while len(chosen) < tokens:
            logits, past = self.step(chosen[-1][:, None], past)
            chosen.append(logits[:, -1].argmax(-1))
        return np.stack(chosen, axis=1)

    def _call(self, feeds: dict[str, Any], profile: str) -> dict[str, Any]:
        self._stream.wait_stream(torch.cuda.current_stream())
        self._choose(self._profiles.get(profile, 0))
        for name, value in feeds.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise TrimlineError(
                    f"The engine takes no {name} of shape {tuple(value.shape)} in its profile {profile}.",
                    "Build it for longer prompts or larger batches: name them as workloads.",
                )
            # An empty tensor has no memory, and TensorRT takes no null address.
            self._context.set_tensor_address(name, value.data_ptr() or self._dummy().data_ptr())
        outputs = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=self._dtype(name), device="cuda")
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise TrimlineError(f"The engine in {self.folder} failed.", "Build it again on this machine.")
        self._stream.synchronize()
        return outputs

    def _choose(self, number: int) -> None:
        if number != self._active:
            self._context.set_optimization_profile_async(number, self._stream.cuda_stream)
            self._active = number

    def _dummy(self) -> Any:
        if not hasattr(self, "_spare"):
            self._spare = torch.empty(256, dtype=torch.uint8, device="cuda")
        return self._spare

    def _dtype(self, name: str) -> torch.dtype:
        kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32}
        return kinds[self._engine.get_tensor_dtype(name).name]


def _record(folder: Path) -> dict[str, Any]:
    if not (folder / "build.json").is_file():
        raise TrimlineError(f"There is no build.json in {folder}.", "Give a folder that `trimline build` wrote.")
    return dict(read_json(folder / "build.json"))
