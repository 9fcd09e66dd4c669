"""A few steps of ``full`` distillation in whatever tree of this project stands first on Python's path; prints what they took as JSON.

Run by ``benchmarks.studies.recovery.speed``, as a file, in a process of its own: ``python step.py JSON``. It knows both this tree's
names and those of commit 75026d1.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def either(*modules: str, name: str) -> Any:
    """``name`` of the first module that there is."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise SystemExit(f"no module of {modules}")


def main(asked: dict[str, Any]) -> None:
    """Trains; CPU seconds are those between the end of the first step and the end of the last, so start-up is not among them."""
    sys.path.insert(0, asked["tree"])
    slice_ = either("pipeline.recover.recipe", "pipeline.recipe", name="RecoverSlice")
    events = either("pipeline.common.events", "pipeline.events", name="Events")
    options = either("pipeline.common.options", "pipeline.options", name="RunOptions")(dtype="float32", threads=1)
    recover = importlib.import_module("pipeline.recover.stage").recover
    peak_of = either("benchmarks.machine.memory", "benchmarks.memory", name="AnonymousPeak")
    ends: list[float] = []
    reads: list[float] = []

    def hear(event: Any) -> None:
        if event.text.startswith("training") and event.done:
            ends.append(time.process_time())
        if event.text.startswith("the dense model reads"):
            reads.append(time.process_time())
        if ends and len(ends) == asked["recipe"]["steps"]:
            raise SystemExit  # what follows is the gate

    with peak_of() as anonymous, contextlib.suppress(SystemExit):
        recover(*map(Path, asked["folders"]), slice_(**asked["recipe"]), options, Path(asked["out"]), Path(asked["work"]), events(hear))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]
    read = reads[-1] - reads[0] if reads else 0.0
    print(
        json.dumps(
            {"steps": seconds, "read": read, "windows read": max(0, len(reads) - 1), "peak": peak, "anonymous": anonymous.bytes or 0}
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
