"""int8 for sparse tensor cores before Hopper: quantisers around every product, calibrated, 2:4 and perplexity checked again.

Ampere and Ada have sparse kernels for int8 only, and NVIDIA's own example needed quantisers behind the products too before
TensorRT took them. ONNX Runtime's static quantiser writes them: weights symmetric with one scale per output channel,
activations symmetric with one scale each, zero points 0, so that a zero weight stays zero. Before that, outliers are moved
(``smooth.py``). The head stays as it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx as onnx_format
import torch
from transformers import PreTrainedTokenizerFast

from exporters.folder import EXPORT, GATE
from exporters.onnx.files import GRAPH, WEIGHTS
from exporters.onnx.gate.perplexity import graph_perplexity
from exporters.onnx.lowering.outliers import observe, products_of, prompts
from exporters.onnx.runtime import needs_runtime
from exporters.onnx.sparsity import check_two_four, load_graph, weight_patterns
from exporters.recipe import BuildSlice
from exporters.tensorrt.smooth import smooth, too_rough
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.sources.folder import TEXT_OF
from pipeline.sources.windows import consecutive_windows

JUDGED_WINDOWS, JUDGED_WINDOW = 8, 256  # of the evaluation text, before and after


def quantise(onnx: Path, recipe: BuildSlice, options: RunOptions, out: Path, events: Events, *, texts: Path | None) -> dict[str, Any]:
    """Writes the quantised graph into the new folder ``out``.

    Returns:
        Perplexity before and after, their ratio and its bar, how many products were quantised, 2:4 before and after.

    Raises:
        TrimlineError: there is no text to calibrate on, the folder has no tokenizer, or int8 holds none of its products.
        GateError: perplexity rose by more than the recipe allows, or weights that were 2:4 no longer are.
    """
    needs_runtime()
    windows, judged = _windows(onnx, recipe, texts)
    before = list(weight_patterns(onnx / GRAPH))
    nodes = sorted({pattern.node for pattern in before if not pattern.head and pattern.operator in {"MatMul", "Gemm"}})
    if not nodes or "" in nodes:
        raise TrimlineError(f"{onnx} holds no named product with a weight.", "Export it again with lowering: portable.")
    out.mkdir(parents=True)
    with events.progress(f"quantising {len(nodes)} products on {windows.numel():,} tokens", 1) as advance:
        left_alone = _write(onnx, nodes, windows, options.threads, out)
        advance(1)
    found = _judge(onnx, out, judged, recipe, options, events)
    sparsity = {"before": check_two_four(before), "after": check_two_four(list(weight_patterns(out / GRAPH)))}
    lost = sorted(set(sparsity["after"]["others"]) - {f"{name}_quantized" for name in sparsity["before"]["others"]})
    if sparsity["before"]["complies"] and lost:
        raise GateError(f"{len(lost)} weights were 2:4 before they were quantised and are not now, {lost[0]} first.", "Please report it.")
    if left_alone:
        events.note(f"{len(left_alone)} of {len(nodes)} products stay as they are: int8 has no scale for their outliers")
    return found | {
        "products": len(nodes) - len(left_alone),
        "left_alone": left_alone,
        "two_four": {name: verdict["complies"] for name, verdict in sparsity.items()},
    }


def _windows(onnx: Path, recipe: BuildSlice, texts: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows to calibrate on and windows to judge on, (N, S) each."""
    if texts is None:
        raise TrimlineError("int8 is calibrated on a text, and none was named.", "Name one with --calibration, or use precision: graph.")
    if not (onnx / "tokenizer.json").is_file():
        raise TrimlineError(f"There is no tokenizer.json in {onnx}.", "Export a checkpoint that has one, or use precision: graph.")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(onnx / "tokenizer.json"))
    sizes = (recipe.calibration_windows, recipe.calibration_window), (JUDGED_WINDOWS, JUDGED_WINDOW)
    calibrate, judge = (
        consecutive_windows(tokenizer, (texts / TEXT_OF[role]).read_text(encoding="utf-8"), *size)
        for role, size in zip(("calibration", "evaluation"), sizes, strict=True)
    )
    return calibrate, judge


class _Feeds:
    """One window after another, as onnxruntime's calibration asks for them."""

    def __init__(self, graph: Path, windows: torch.Tensor) -> None:
        self._feeds = prompts(load_graph(graph), windows.numpy())

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._feeds


def _write(onnx: Path, nodes: list[str], windows: torch.Tensor, threads: int, out: Path) -> list[str]:
    """Smooths, quantises and writes; returns the nodes that were left as they are."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(dir=out.parent) as scratch, _quietly():
        # onnxruntime writes beside what it reads, and nothing may be written into the exported folder; onnx follows no links.
        for name in (GRAPH, WEIGHTS):
            if (onnx / name).is_file():
                shutil.copyfile(onnx / name, Path(scratch) / name)
        left_alone = _smoothed(Path(scratch) / GRAPH, nodes, windows, threads)
        if not set(nodes) - set(left_alone):  # to onnxruntime, no nodes named means all of them
            raise TrimlineError(f"int8 has a scale for none of the {len(nodes)} products of {onnx}.", "Use precision: graph.")
        quantize_static(
            Path(scratch) / GRAPH,
            out / GRAPH,
            _Feeds(onnx / GRAPH, windows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=sorted(set(nodes) - set(left_alone)),
            op_types_to_quantize=["MatMul", "Gemm"],
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=True,
            calibration_providers=["CPUExecutionProvider"],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
    for path in onnx.iterdir():
        if path.is_file() and path.name not in {GRAPH, WEIGHTS, GATE} and path.suffix in {".json", ".jinja", ".model", ".txt"}:
            shutil.copyfile(path, out / path.name)
    write_json(out / EXPORT, read_json(onnx / EXPORT) | {"precision": "int8"})
    return left_alone


def _smoothed(graph: Path, nodes: list[str], windows: torch.Tensor, threads: int) -> list[str]:
    """Replaces a graph file by its smoothed form; returns the nodes that int8 cannot hold even so."""
    model = onnx_format.load(graph)
    products = products_of(model, nodes)
    seen = observe(graph, (name for one in products for name in (one.given, one.result)), _Feeds(graph, windows), threads)
    scales = smooth(model, products, seen)
    (graph.parent / WEIGHTS).unlink(missing_ok=True)
    onnx_format.save(model, graph, save_as_external_data=True, location=WEIGHTS)
    return too_rough(products, seen, scales)


def _judge(onnx: Path, out: Path, windows: torch.Tensor, recipe: BuildSlice, options: RunOptions, events: Events) -> dict[str, Any]:
    before, after = (graph_perplexity(folder, windows, options.threads)["perplexity"] for folder in (onnx, out))
    ratio = after / before
    events.gate(f"int8: perplexity {before:.2f} → {after:.2f}, {ratio:.3f} times", before=before, after=after, bar=recipe.largest_ratio)
    if not ratio <= recipe.largest_ratio:
        raise GateError(
            f"int8 takes the perplexity from {before:.2f} to {after:.2f}, {ratio:.2f} times, where {recipe.largest_ratio:g} times is allowed.",
            "Calibrate on more windows, allow more (build.largest_ratio), or use precision: graph.",
        )
    return {"perplexity": {"before": before, "after": after}, "ratio": ratio, "bar": recipe.largest_ratio, "tokens": windows.numel()}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps onnxruntime's advice off the terminal: it goes through the root logger and print."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger().setLevel(level)
