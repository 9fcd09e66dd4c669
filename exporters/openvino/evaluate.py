"""Perplexity of an OpenVINO folder on the evaluation text, computed as the device does by itself."""

from __future__ import annotations

from pathlib import Path

from exporters.folder import EXPORT
from exporters.onnx.gate.evaluate import windows_to_judge
from exporters.onnx.gate.perplexity import graph_losses
from exporters.openvino.session import OpenvinoDecoder
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, perplexity_record
from pipeline.evaluate.recipe import EvaluateSlice


def evaluate_openvino(
    checkpoint: Path | None, folder: Path, texts: Path, recipe: EvaluateSlice, options: RunOptions, out: Path, events: Events
) -> None:
    """Stage: as ``exporters.onnx.gate.evaluate.evaluate_graph``, of a folder in OpenVINO's form.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or OpenVINO cannot open the folder.
    """
    stated = read_json(folder / EXPORT)
    text, windows = windows_to_judge(checkpoint, folder, texts, recipe, options, stated["positions"])
    decoder = OpenvinoDecoder(folder, options.threads, every_position=True)
    found = perplexity_record(graph_losses(decoder, windows, events))
    precision = stated["precision"]
    kept = {"text": text, "window": recipe.window, "precision": precision, "arithmetic": decoder.arithmetic}
    write_json(out / RESULT, found | kept)
    events.note(f"perplexity {found['perplexity']:.2f} of the {precision} graph in OpenVINO")
