"""Run options: how to compute, as apart from what is wanted (the recipe)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.common.errors import TrimlineError
from pipeline.common.memory import usable_cores, usable_memory

DType = Literal["auto", "float32", "bfloat16", "float16"]
WEIGHTS_SHARE = 0.6  # of the memory; the rest is for hidden states, statistics and the libraries


@dataclass(frozen=True)
class RunOptions:
    """How every stage computes.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: of the forward passes that collect statistics; ``auto`` takes bf16 where the processor has
            instructions for it and the checkpoint's own dtype elsewhere.
        threads: for torch and ONNX Runtime.
        trust_remote_code: run modelling code that a foreign checkpoint carries.
        memory: bytes that may be used; None is what the GPU, the machine or its container has. A model that takes more than its share
            is in memory one block at a time, and computes the same.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: DType = "auto"
    threads: int = usable_cores()
    trust_remote_code: bool = False
    memory: int | None = None

    def apply(self) -> None:
        """Sets torch's thread count.

        Raises:
            TrimlineError: ``cuda`` is asked for and torch sees none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise TrimlineError("This torch sees no CUDA device.", "Use --device cpu, or install a CUDA build of torch.")
        torch.set_num_threads(self.threads)

    def resolved_dtype(self) -> torch.dtype:
        """The dtype that ``auto`` means on this machine."""
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        native = torch.cuda.is_bf16_supported() if self.device == "cuda" else processor_has_bf16()
        return torch.bfloat16 if native else torch.float32

    def holds(self, weights: int) -> bool:
        """Whether so many bytes of weights may be in memory as a whole, with what is computed on them."""
        return weights <= self.for_weights()

    def for_weights(self) -> int:
        """Bytes that weights may take in memory as a whole."""
        there_is = torch.cuda.mem_get_info()[1] if self.device == "cuda" and not self.memory else usable_memory()
        return int(WEIGHTS_SHARE * (self.memory or there_is))

    def share(self, part: float) -> int:
        """That part of the memory that the processor may use, in bytes."""
        return int(part * (self.memory or usable_memory()))

    def as_record(self) -> dict[str, Any]:
        """What the manifest keeps and what a stage's key depends on: not the memory, which changes no result."""
        record = asdict(self) | {"dtype": str(self.resolved_dtype()).removeprefix("torch.")}
        del record["memory"]
        return record


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AVX512-BF16, AMX, or Arm's bf16 extension)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
