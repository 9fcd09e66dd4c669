"""torch.compile as a runtime: one compiled graph for the prompt pass and one for single steps, over a cache of fixed size.

A cache that grows would change a shape at every step, and with it the graph. So the cache has room for the whole request
from the beginning, and every step of a workload runs the same code. Compiling happens in the first request of every
shape, which is a warm-up: it counts as cold start, and a request that compiles later is refused as a sample.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import _dynamo as dynamo
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import StaticCache

from benchmarks.runtimes.torch_decoder import TorchDecoder
from pipeline.common.errors import TrimlineError

MOST_SHAPES = 256  # graphs of one model; torch stops compiling after eight unless told otherwise


class CompiledDecoder(TorchDecoder):
    """A checkpoint folder in torch, compiled by Inductor.

    Args:
        folder: of the checkpoint.
        threads: of what runs on the processor.
        device: ``cuda`` computes in fp16 and replays its steps as a CUDA graph, ``cpu`` computes in fp32.
        backend: what compiles the graphs that torch has traced.

    Raises:
        TrimlineError: torch sees no GPU that was asked for, or there is no C++ compiler.
    """

    def __init__(self, folder: Path, threads: int, *, device: str = "cpu", backend: str = "inductor") -> None:
        demand_compiler()
        super().__init__(folder, threads, device=device)
        self._folder = Path(folder)
        self._caches: dict[tuple[int, int], StaticCache] = {}
        dynamo.reset()  # lets go of what an earlier opening compiled in this process
        dynamo.config.recompile_limit = MOST_SHAPES  # a shape beyond it is an error: fullgraph forbids running it uncompiled
        inductor.compile_threads = 1  # in this process: a pool of compilers would outlive it
        whole: dict[str, Any] = {"backend": backend, "dynamic": False, "fullgraph": True}
        self._prompt = torch.compile(self._model, **whole)
        self._step = torch.compile(self._model, **whole, mode="reduce-overhead" if device == "cuda" else None)

    @property
    def graphs(self) -> int:
        """How many graphs this process has compiled so far."""
        return int(counters["stats"]["unique_graphs"])

    @torch.no_grad()
    def empty(self, batch: int, capacity: int) -> StaticCache:
        """A cache for ``capacity`` tokens: the one of the last request of that size, emptied, since a new one may mean a new graph."""
        size = batch, capacity
        if size not in self._caches:
            self._caches[size] = self._new_cache(batch, capacity)
        self._caches[size].reset()
        return self._caches[size]

    @torch.no_grad()
    def run(self, ids: Any, past: Any) -> tuple[Any, Any]:
        """Token ids (batch, tokens) and the cache so far into logits and the same cache; finished when it returns.

        Raises:
            TrimlineError: torch.compile does not take this model.
        """
        # Memory of its own has the strides of its shape, where a view of one row may have any, and torch compiles anew for others.
        tokens = torch.empty(ids.shape, dtype=torch.int64, device=self._device)
        tokens.copy_(torch.from_numpy(ids))
        call = self._step if ids.shape[1] == 1 else self._prompt
        if self._device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            found = call(input_ids=tokens, past_key_values=past, use_cache=True)
        except TorchDynamoException as error:
            said = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
            raise TrimlineError(f"torch.compile cannot compile {self._folder} ({said}).", "Measure runtime: torch.") from error
        if self._device == "cuda":
            torch.cuda.synchronize()
        return found.logits, past

    def _new_cache(self, batch: int, capacity: int) -> StaticCache:
        """Blocks may differ in their KV heads: a token that passes through uncompiled gives every layer its own size."""
        cache = StaticCache(self._model.config, max_cache_len=capacity)
        self._model(input_ids=torch.zeros((batch, 1), dtype=torch.int64, device=self._device), past_key_values=cache, use_cache=True)
        return cache


def demand_compiler() -> None:
    """Of torch.compile: Inductor writes C++ and has it compiled.

    Raises:
        TrimlineError: the compiler that it would call is not there.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise TrimlineError(f"torch.compile needs a C++ compiler, and there is no {compiler} here.",
                            "Install it (Debian: apt-get install g++), name another in CXX, or measure runtime: torch.")  # fmt: skip
