"""The gate between a graph in ONNX Runtime on the processor and its engine on the GPU, which runs in a process of its own: it can end that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters.folder import GATE
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.running.shapes import EngineRequest
from exporters.tensorrt.child import run_in_child
from exporters.tensorrt.decoder import along
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import compare_logits, demand, gate_tokens

# Of the largest logit. In fp32 without TF32 both sum in another order; in fp16 and int8 they round between the products too.
BARS = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-1}


def gate_engine(graph: Path, folder: Path, requests: Sequence[EngineRequest], options: RunOptions, events: Events) -> dict[str, Any]:
    """Compares prompt and steps of both, and writes gate.json into the engine's folder.

    Raises:
        GateError: they differ by more than the precision's bar.
        TrimlineError: the engine does not open here, or ends its process.
    """
    reference = OnnxDecoder(graph.parent, options.threads)
    length = min(32, max(request.prompt for request in requests))
    ids = gate_tokens(reference.vocab, rows=1, length=length).numpy()
    half = max(1, length // 2)
    # A graph of last logits tells of where each piece ends, so both are fed the same pieces.
    paths = {"without cache": [(0, length)], "with cache, token by token": [(0, half), *((at, at + 1) for at in range(half, length))]}
    expected = {name: along(reference, ids, pieces) for name, pieces in paths.items()}
    del reference  # its weights, before another process has them
    precision, found = run_in_child(folder, ids, paths)
    bar = BARS[precision] * max(1.0, *(float(np.abs(logits).max()) for logits in expected.values()))
    record: dict[str, Any] = {"reference": "ONNX Runtime on the processor", "precision": precision, "checks": {}}
    for name, logits in expected.items():
        comparison = compare_logits(torch.from_numpy(logits), torch.from_numpy(found[name]), bar)
        record["checks"][name] = comparison.as_record()
        events.gate(f"engine, {name}: largest logit difference {comparison.difference:.2g}", **comparison.as_record())
        demand(comparison, f"{graph} (ONNX Runtime)", f"{folder} ({name})")
    write_json(folder / GATE, record)
    return record
