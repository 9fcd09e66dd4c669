"""A model that is measured: an exported folder, its geometry, and what its graph computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.formulas.roofline import FP32, Call, Widths
from benchmarks.recipe import Workload
from benchmarks.runtimes.names import FORMS, GGUF, Device, Multiplied, Runtime, computes_on
from exporters.folder import CONFIG, EXPORT, GATE
from exporters.onnx.lowering.precision import bytes_per_weight
from exporters.openvino.files import WEIGHTS as OPENVINO_WEIGHTS
from exporters.tensorrt.folder import RECORD, SECONDS
from exporters.tensorrt.parts import SETTINGS
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json

WEIGHT_FILES = ("*.onnx*", "*.engine", "*.safetensors", "*.gguf", "openvino_model.bin")
BYTES = {
    "fp32": Widths(),
    "fp16": Widths(2, 2),
    "bf16": Widths(2, 2),
    "int8": Widths(FP32, bytes_per_weight(8, offsets=False)),
    "int4": Widths(FP32, bytes_per_weight(4)),
}


@dataclass(frozen=True)
class Subject:
    """One exported model.

    Attributes:
        logits: ``all`` positions or only the ``last``.
        bits: of the weights of single operators, where they differ from the precision's.
        weight_bytes: of one weight, where the precision does not say; of a GGUF and of OpenVINO's form the mean over all.
        cache_bytes: of one number in the cache, where ``weight_bytes`` is given.
    """

    name: str
    folder: Path
    geometry: Geometry
    precision: str
    logits: str
    lowering: str
    bits: Mapping[str, int] = field(default_factory=dict)
    weight_bytes: float | None = None
    cache_bytes: float = 2  # llama.cpp keeps keys and values in fp16

    @classmethod
    def read(cls, name: str, folder: Path, runtime: Runtime = "onnxruntime", device: Device = "cpu") -> Subject:
        """Opens what the runtime runs: an exported folder, an engine folder, a folder with a GGUF, or a checkpoint.

        Raises:
            TrimlineError: it was not written by an export stage, in the other format, or in a precision that is not known here.
        """
        if FORMS[runtime] == "checkpoint":
            precision = "fp16" if computes_on(runtime, device) == "cuda" else "fp32"  # what benchmarks.runtimes.torch_decoder makes of it
            return cls(
                name, folder, Checkpoint(folder).geometry, precision, "all", "torch_compile" if runtime == "torch_compile" else "torch"
            )
        geometry = Geometry.from_config(read_json(folder / CONFIG))
        export = read_json(folder / EXPORT)
        stated = str(export.get("format", "onnx"))
        is_gguf, opened = stated == "gguf", FORMS[runtime] if FORMS[runtime] in ("gguf", "openvino") else "onnx"
        if stated != opened:
            raise TrimlineError(
                f"{folder} is an export of format {stated}, which {runtime} does not run.", f"Export it with --format {opened}."
            )
        if is_gguf:
            mean = (folder / GGUF).stat().st_size / geometry.total_parameters()
            kind = str(export.get("quantise") or export.get("precision"))
            return cls(name, folder, geometry, kind, "last", "llama.cpp", weight_bytes=mean)
        precision = str(export.get("precision"))
        if stated == "openvino":
            mean = (folder / OPENVINO_WEIGHTS).stat().st_size / geometry.total_parameters()
            return cls(name, folder, geometry, precision, "last", "openvino", weight_bytes=mean, cache_bytes=_openvino_cache(folder))
        if precision not in BYTES:
            raise TrimlineError(f"{folder / EXPORT} states the precision {precision!r}.", f"Known are {', '.join(BYTES)}.")
        return cls(
            name, folder, geometry, precision, str(export.get("logits", "all")), str(export.get("lowering")), dict(export.get("bits", {}))
        )

    @property
    def widths(self) -> Widths:
        if self.weight_bytes is not None:
            return Widths(self.cache_bytes, self.weight_bytes)
        special = {operator: bytes_per_weight(bits) for operator, bits in self.bits.items()}
        return replace(BYTES[self.precision], special=special)

    def multiplied(self, place: Device) -> Multiplied:
        """The precision whose rate is the ceiling of its products: a processor's is measured in fp32; int8 and int4 count as fp16 on a GPU."""
        if place == "cpu" or self.precision == "fp32":
            return "fp32"
        return "bf16" if self.precision == "bf16" else "fp16"

    def call(self, workload: Workload, phase: str) -> Call:
        """The call that is timed: the whole prompt pass, or the decode step in the middle of the request."""
        if phase == "decode":
            return Call(1, workload.prompt + (workload.steps - 1) // 2, workload.batch, 1)
        return Call(workload.prompt, 0, workload.batch, workload.prompt if self.logits == "all" else 1)

    @property
    def build_seconds(self) -> dict[str, float] | None:
        """What it took to parse the graph and to build the engine of it; None where there is no engine, or nobody knows."""
        built = self.folder / SECONDS
        return read_json(built) if built.is_file() else None

    @property
    def engine_settings(self) -> dict[str, Any] | None:
        """What TensorRT's timings depend on beside the engine, and whether it uses sparse kernels; None where there is no engine."""
        record = self.folder / RECORD
        if not record.is_file():
            return None
        return SETTINGS | {"sparse_kernels": read_json(record).get("sparse_kernels", {}).get("verdict", "unknown")}

    def as_record(self) -> dict[str, Any]:
        return {
            "precision": self.precision,
            "lowering": self.lowering,
            "logits": self.logits,
            "parameters": self.geometry.total_parameters(),
            "weight_file_bytes": sum(path.stat().st_size for kind in WEIGHT_FILES for path in self.folder.glob(kind)),
            "engine_build": self.build_seconds,
            "engine_settings": self.engine_settings,
            "kv_bytes_per_token": self.geometry.kv_bytes_per_token(1) * self.widths.activation,
        }


def _openvino_cache(folder: Path) -> float:
    """Bytes of a number in the cache: the format that the device had chosen when the folder was gated."""
    gate = read_json(folder / GATE) if (folder / GATE).is_file() else {}
    return {"u8": 1, "i8": 1, "f16": 2, "bf16": 2}.get(gate.get("arithmetic", {}).get("cache"), FP32)
