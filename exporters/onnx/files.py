"""What an ONNX folder holds, written so that the same checkpoint gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from pipeline.common.errors import TrimlineError

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
LOWERING_KEY = "trimline.lowering"
INLINE_BYTES = 1024


def save_graph(model: ir.Model, folder: Path, lowering: str) -> None:
    """Writes model.onnx and, beside it, its weights; whatever could differ between two runs is dropped.

    Raises:
        TrimlineError: the disk is full or the folder cannot be written.
    """
    _strip(model, lowering)
    try:
        ir.save(model, folder / GRAPH, external_data=WEIGHTS, size_threshold_bytes=INLINE_BYTES)
    except OSError as error:
        raise TrimlineError(f"{folder / GRAPH} could not be written: {error}.", "Free some space and run it again.") from error


def _strip(model: ir.Model, lowering: str) -> None:
    # Exporters record stack traces, module paths and file names of this machine in doc strings and metadata.
    model.producer_name, model.producer_version = "trimline", None
    model.doc_string = None
    model.metadata_props.clear()
    model.metadata_props[LOWERING_KEY] = lowering
    for graph in model.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        for node in graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


PAST, PRESENT = "past_key_values.", "present."
