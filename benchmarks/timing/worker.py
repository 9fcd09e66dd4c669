"""The process that a measurement runs in: one model, fresh memory, told what to do line by line.

``python -m benchmarks.timing.worker`` answers as ``pipeline.common.children`` says. A fresh process per model keeps peak memory
apart and lets no model inherit another's warm allocator or thread pool.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from benchmarks.machine.energy import Meter
from benchmarks.machine.memory import process_memory
from benchmarks.machine.pinning import pin
from benchmarks.runtimes.names import FORMS, Device, Multiplied, Runtime, computes_on
from benchmarks.runtimes.opening import Opener
from benchmarks.runtimes.opening import opener as opener_of
from exporters.onnx.runtime import needs_runtime
from pipeline.common.answering import answer_parent, answered
from pipeline.common.errors import TrimlineError

SETTLE = 0.005  # seconds in which a thread pool stops spinning before the next process is timed


class TimedDecoder(Protocol):
    """What is timed."""

    def empty(self, batch: int, capacity: int) -> Any:
        """A cache with room for ``capacity`` tokens."""

    def run(self, ids: Any, past: Any) -> tuple[Any, Any]:
        """Token ids (batch, tokens) and the cache so far into logits and the longer cache."""


class Worker:
    """Answers requests; every public method is one, its keyword arguments the request's other keys."""

    def __init__(self, opener: Opener | None = None, meter: Meter | None = None) -> None:
        self._opener, self._given = opener, meter
        self._meter = meter or Meter()
        self._decoder: TimedDecoder | None = None
        self._torch_holds = False
        self._cores = list(range(psutil.cpu_count() or 1))
        self._requests = {method.__name__: method for method in (self.pin, self.load, self.run, self.memory, self.energy, self.ceilings)}

    def pin(self, threads: int) -> dict[str, Any]:
        """Keeps this process, and the threads that it will start, on ``threads`` cores."""
        self._cores = pin(threads)
        return {"cores": self._cores}

    def load(
        self,
        folder: str,
        threads: int,
        runtime: Runtime = "onnxruntime",
        device: Device = "cpu",
        requests: Sequence[tuple[int, int, int]] = (),
    ) -> dict[str, Any]:
        """Opens a model after letting go of the one before: seconds that it took, the first half of the cold start, and bytes held just before."""
        opener = self._opener or opener_of(runtime, Path(folder), device, requests)
        self._decoder, self._torch_holds = None, FORMS[runtime] == "checkpoint"
        gc.collect()
        before = process_memory()["anonymous"]
        start = time.perf_counter()
        self._decoder = opener(Path(folder), threads)
        seconds = time.perf_counter() - start
        self._meter = self._given or Meter.here(gpu=computes_on(runtime, device) == "cuda")
        return {"seconds": seconds, "before": before}

    def run(self, prompt: int, output: int, batch: int, vocab: int, seed: int) -> dict[str, Any]:
        """One request of random tokens: seconds of the prompt pass and of every step after it, and joules of either by counter.

        Of an engine also the parts of every pass, in seconds, by name.
        """
        if self._decoder is None:
            raise TrimlineError("The worker was asked to run before it was given a model.")
        ids = np.random.default_rng(seed).integers(0, vocab, (batch, prompt + output - 1))
        pieces = [ids[:, :prompt], *(ids[:, i : i + 1] for i in range(prompt, prompt + output - 1))]
        pieces = [np.ascontiguousarray(piece, np.int64) for piece in pieces]
        past = self._decoder.empty(batch, prompt + output)
        graphs, busy = self._graphs(), self._busy_elsewhere()
        self._parts()  # of no request
        (prefill,), past, of_prompt = self._passes(pieces[:1], past)
        parts = {"prefill": self._parts()}
        gaps, _, of_steps = self._passes(pieces[1:], past)
        parts["decode"] = self._parts()
        others = (self._busy_elsewhere() - busy) / (prefill + sum(gaps))
        joules = {"prefill": of_prompt} | ({"decode": of_steps} if gaps else {})
        found = {"prefill": prefill, "gaps": gaps, "others": max(0.0, others), "compiled": self._graphs() - graphs, "joules": joules}
        return found | {"parts": {phase: of_phase for phase, of_phase in parts.items() if of_phase}}

    def _passes(self, pieces: Sequence[Any], past: Any) -> tuple[list[float], Any, dict[str, float]]:
        """Seconds of every pass, the cache after them, and joules of all together: counters are read outside what is timed."""
        assert self._decoder is not None
        before, marks = self._meter.read(), [time.perf_counter()]
        for piece in pieces:
            _, past = self._decoder.run(piece, past)
            marks.append(time.perf_counter())
        return np.diff(marks).tolist(), past, self._meter.joules(before, self._meter.read())

    def memory(self) -> dict[str, Any]:
        """Bytes that this process has held at most, and holds now; and what torch has held of a GPU, where torch holds the weights.

        Other runtimes allocate for themselves, and torch knows of their cache alone: no figure, rather than that one.
        """
        torch = sys.modules.get("torch") if self._torch_holds else None
        peak = torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
        return process_memory() | {"device_peak": peak or None}

    def energy(self) -> dict[str, Any]:
        """What is counted of energy here, and why the rest is not."""
        return self._meter.as_record()

    def ceilings(
        self, threads: int, runtime: Runtime = "onnxruntime", device: Device = "cpu", precision: Multiplied = "fp32"
    ) -> dict[str, Any]:
        """What memory and the matrix units of this machine, or of its GPU, can do; a processor multiplies fp32."""
        needs_runtime()
        from benchmarks.machine.ceilings import measure_ceilings, measure_gpu_ceilings

        return measure_gpu_ceilings(precision) if computes_on(runtime, device) == "cuda" else measure_ceilings(threads)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reply to one request; a user's error becomes a reply, a fault of ours ends the process."""
        arguments = {key: value for key, value in request.items() if key != "do"}
        return answered(self._requests[request["do"]], **arguments)

    def _graphs(self) -> int:
        """Compiled so far, by a decoder that compiles."""
        return getattr(self._decoder, "graphs", 0)

    def _parts(self) -> dict[str, list[float]]:
        """Of every pass since this was last asked, by name; a decoder that does not tell them apart has none."""
        parts = getattr(self._decoder, "parts", None)
        return parts.take() if parts is not None else {}

    def _busy_elsewhere(self) -> float:
        """Processor seconds that everybody else has spent on our cores so far, stolen time included."""
        per_core = psutil.cpu_times(percpu=True)
        busy = sum(sum(per_core[core]) - per_core[core].idle - getattr(per_core[core], "iowait", 0.0) for core in self._cores)
        own = psutil.Process().cpu_times()
        return busy - own.user - own.system


def main() -> None:
    """Serves the parent; replies once the process has settled, so that what is timed next is timed alone."""
    gc.disable()
    worker = Worker()

    def settled(request: dict[str, Any]) -> dict[str, Any]:
        reply = worker.answer(request)
        gc.collect()
        time.sleep(SETTLE)
        return reply

    answer_parent(settled)


if __name__ == "__main__":
    main()
