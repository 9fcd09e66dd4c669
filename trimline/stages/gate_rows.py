"""What every gate of a run found, as the report shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exporters.folder import GATE
from exporters.tensorrt.folder import RECORD as BUILD
from pipeline.artefacts.artefact import Artefact
from pipeline.common.files import read_json
from trimline.reporting import GateRow
from trimline.reporting.data import Role
from trimline.stages.names import RECOVERED, SMALLER, Lane, Name, engine_of


def gate_rows(exports: Mapping[Role, Path], done: Mapping[Name, Artefact]) -> Iterator[GateRow]:
    """One row per comparison.

    Args:
        exports: folders of what was exported of the dense and the pruned model; none where the recipe makes no graph.
        done: every artefact, by its name.
    """
    rebuilt = read_json(done[SMALLER].folder / GATE)["attempts"][-1]
    yield _gate("dense with the plan as zeros → rebuilt checkpoint", rebuilt["masked_dense"], rebuilt["dtype"])
    yield _cache_gate(rebuilt)
    if RECOVERED in done:
        yield from _recovery_gates(read_json(done[RECOVERED].folder / GATE))
    for role, folder in exports.items():
        record = read_json(folder / GATE)
        yield from (_openvino_gates if record.get("format") == "openvino" else _onnx_gates)(role, record)
        if (engine := engine_of(Lane(role))) in done:
            yield from engine_gates(role, done[engine].folder)


def _onnx_gates(role: Role, record: Mapping[str, Any]) -> Iterator[GateRow]:
    cost, genai = record["perplexity"], record["genai"]
    name = f"{role} checkpoint → ONNX in {record['precision']}, perplexity"
    if cost["run"]:
        yield GateRow(
            name, cost["passed"], cost["ratio"], cost["bar"], f"{cost['graph']:.2f} over {cost['checkpoint']:.2f}; {cost['evaluation']}"
        )
    else:
        yield GateRow(name, None, detail=cost["why"])
    exact = record["precision"] == "fp32"
    source, detail = (
        (f"{role} checkpoint", "against torch in fp32") if exact else (f"{role} graph read at once", "KL divergence in nats, mean")
    )
    for check, comparison in record["checks"].items():
        yield _gate(f"{source} → ONNX, {check}", comparison, f"ONNX Runtime, {detail}")
    if genai["run"]:
        yield _gate(f"{source} → onnxruntime-genai", genai, f"teacher-forced, {detail}")
    else:
        yield GateRow(f"{source} → onnxruntime-genai", None, detail=genai["why"])


def _openvino_gates(role: Role, record: Mapping[str, Any]) -> Iterator[GateRow]:
    weights, cost, genai = record["weights"], record["perplexity"], record["genai"]
    name, source = f"{role} checkpoint → OpenVINO in {record['precision']}", f"{role} checkpoint with these weights → OpenVINO"
    yield GateRow(
        f"{name}, weights", weights["passed"], weights["most noise"], None, "largest error over that of rounding, one weight at a time"
    )
    chosen = ", ".join(f"{what} {value}" for what, value in record["arithmetic"].items())
    if cost["run"]:
        detail = f"{cost['graph']:.2f} over {cost['checkpoint']:.2f}, as the device computes by itself: {chosen}"
        yield GateRow(f"{name}, perplexity", cost["passed"], cost["ratio"], cost["bar"], detail)
    else:
        yield GateRow(f"{name}, perplexity", None, detail=f"{cost['why']}; the device computes with {chosen}")
    for check, comparison in record["checks"].items():
        if isinstance(comparison, dict):
            yield _gate(f"{source}, {check}", comparison, "asked for accuracy, against torch in fp32")
    for check, comparison in record["by itself"].items():
        yield _gate(f"{source}, {check}", comparison, "as the device computes by itself, KL divergence in nats, mean")
    for backend in ("PA", "its own choice", "SDPA"):
        if backend not in genai:
            continue
        agreed, compared = genai[backend]["agreed"], genai[backend]["compared"]
        yield GateRow(f"{source} GenAI, attention {backend}", agreed == compared, agreed, compared, "greedy tokens that are torch's")
    if not genai["run"]:
        yield GateRow(f"{source} GenAI", None, detail=genai["why"])


def engine_gates(role: Role, folder: Path) -> Iterator[GateRow]:
    """Rows on one lane's engine folder; an engine that was not run says so."""
    record = read_json(folder / BUILD)
    name, pattern, proof = f"{role} ONNX → {record['builder']} engine", record["two_four"], record["sparse_kernels"]
    if int8 := record["int8"]:
        figures = int8["perplexity"]
        detail = f"perplexity {figures['before']:.2f} → {figures['after']:.2f} in ONNX Runtime, {int8['tokens']:,} tokens"
        yield GateRow(f"{role} ONNX → int8", True, int8["ratio"], int8["bar"], detail)
    if pattern["two_four"]:
        share = pattern["two_four"] / pattern["weights"]
        yield GateRow(
            f"{role} ONNX: weights that are 2:4", pattern["complies"], share, 1.0, f"sparse kernels: {proof['verdict']}, {proof['why']}"
        )
    if record["run"]["run"]:
        for check, comparison in read_json(folder / GATE)["checks"].items():
            yield _gate(f"{name}, {check}", comparison, "on the GPU against ONNX Runtime")
    else:
        yield GateRow(name, None, detail=f"{record['run']['why']}: {record['run']['proves']}")


def _recovery_gates(record: Mapping[str, Any]) -> Iterator[GateRow]:
    last, merge, zeros = record["attempts"][-1], record["merged"], record["zeros"]
    if merge:
        detail = f"{merge['projections']} projections, fp32, relative to their largest output"
        yield GateRow("adapters → merged weights", merge["passed"], merge["difference"], merge["bar"], detail)
    yield GateRow("zeros before recovery → zeros after it", True, 0.0, 0.0, f"{zeros['zeros']:,} kept; {zeros['two_four']} tensors are 2:4")
    yield _gate("trained model → recovered checkpoint", last["reopened"], last["dtype"])
    yield _gate("recovered checkpoint → the same with its cache", last["cache"], last["dtype"])


def _cache_gate(rebuilt: Mapping[str, Any]) -> GateRow:
    """Decoding: against one pass over the same tokens, or where the stock class computes something else there, against the dense model's."""
    if "dense_cache" not in rebuilt:
        return _gate("rebuilt checkpoint → the same with its cache", rebuilt["cache"], rebuilt["dtype"])
    why = f"{rebuilt['dtype']}; its stock class computes other logits with a cache than without, dense too"
    return _gate("dense with the plan as zeros and its cache → rebuilt checkpoint with its cache", rebuilt["dense_cache"], why)


def _gate(name: str, comparison: Mapping[str, Any], detail: str) -> GateRow:
    return GateRow(name, comparison["passed"], comparison["difference"], comparison["bar"], detail)
