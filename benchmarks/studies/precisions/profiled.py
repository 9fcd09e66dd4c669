"""Where the time of a prompt pass goes, by ONNX Runtime's own profile, and how much of it removed weights can save.

The roofline takes every operator at the best that this machine could do. Where a runtime's attention takes several times of that, as on
processors, removing weights cannot gain what the roofline allows: what is removed saves at most the time that it took.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

from exporters.onnx.files import GRAPH
from exporters.onnx.lowering.outliers import prompts
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError

WARM_UP, REPEATS = 2, 7
KERNEL = "_kernel_time"
PARTS = {"ffn": re.compile(r"/layers\.(\d+)/mlp/"), "attention": re.compile(r"/layers\.(\d+)/attn/"), "head": re.compile(r"^/lm_head/()")}


def prompt_profile(folder: Path, prompt: int, vocab: int, threads: int) -> dict[str, float]:
    """Seconds of every node of a fused graph in one pass over ``prompt`` random tokens: the median of seven passes after two."""
    import onnxruntime

    ids = np.random.default_rng(0).integers(0, vocab, (1, prompt))
    [feed] = prompts(onnx.load(folder / GRAPH, load_external_data=False), ids)
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UP + REPEATS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return node_seconds(events)


def node_seconds(events: Iterable[Mapping[str, object]]) -> dict[str, float]:
    """Of ONNX Runtime's profile events, whose durations are microseconds, per node the median over all passes but the first two."""
    runs: dict[str, list[float]] = {}
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith(KERNEL):
            runs.setdefault(name.removesuffix(KERNEL), []).append(float(str(event["dur"])) / 1e6)
    return {name: statistics.median(seconds[WARM_UP:]) for name, seconds in runs.items() if len(seconds) > WARM_UP}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Of all the time, what FFNs, attention (its projections included), the output head and the rest take."""
    whole = sum(seconds.values())
    found = {part: sum(time for name, time in seconds.items() if place.search(name)) / whole for part, place in PARTS.items()}
    return found | {"rest": 1.0 - sum(found.values())}


def allowed_by_time(seconds: Mapping[str, float], dense: Geometry, pruned: Geometry, positions: int) -> float:
    """The speed-up where everything that is removed saves the time that it took in ``dense``, and nothing else changes.

    Args:
        seconds: of every node of the dense graph, which gives the logits of all ``positions``.
        pruned: of the other model, whose graph gives the last one's.

    Raises:
        TrimlineError: blocks or residual dimensions are gone as well, which this does not count.
    """
    if len(dense.blocks) != len(pruned.blocks) or dense.hidden != pruned.hidden:
        raise TrimlineError(
            "Only FFN channels and heads are counted by time.", "Compare models with as many blocks and residual dimensions."
        )
    kept = {
        "ffn": [smaller.ffn / block.ffn if block.ffn else 1.0 for block, smaller in zip(dense.blocks, pruned.blocks, strict=True)],
        "attention": [
            smaller.kv_groups / block.kv_groups if block.kv_groups else 1.0
            for block, smaller in zip(dense.blocks, pruned.blocks, strict=True)
        ],
    }
    left = 0.0
    for name, time in seconds.items():
        part, place = next(((part, found) for part, pattern in PARTS.items() if (found := pattern.search(name))), ("rest", None))
        if part == "head":
            left += time / positions
        elif place is not None:
            left += time * kept[part][int(place[1])]
        else:
            left += time
    return sum(seconds.values()) / left
