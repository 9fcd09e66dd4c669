"""Perplexity of an OpenVINO folder on the evaluation text, computed as the device does by itself."""

from __future__ import annotations

from pathlib import Path

from exporters.folder import CONFIG, EXPORT
from exporters.onnx.gate.evaluate import carried_tokenizer
from exporters.onnx.gate.perplexity import graph_losses
from exporters.openvino.session import OpenvinoDecoder
from pipeline.architecture.geometry import Geometry
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, perplexity_record
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_tokenizer
from pipeline.sources.folder import EVALUATION
from pipeline.sources.windows import check_length, check_windows, consecutive_windows


def evaluate_openvino(
    checkpoint: Path | None, folder: Path, texts: Path, recipe: EvaluateSlice, options: RunOptions, out: Path, events: Events
) -> None:
    """Stage: as ``exporters.onnx.gate.evaluate.evaluate_graph``, of a folder in OpenVINO's form.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or OpenVINO cannot open the folder.
    """
    text = (texts / EVALUATION).read_text(encoding="utf-8")
    trust = options.trust_remote_code
    tokenizer = carried_tokenizer(folder) if checkpoint is None else load_tokenizer(checkpoint, trust_remote_code=trust)
    windows = consecutive_windows(tokenizer, text, recipe.windows, recipe.window)
    stated = read_json(folder / EXPORT)
    check_windows(windows, Geometry.from_config(read_json(folder / CONFIG)))
    check_length(windows, stated["positions"], f"{stated['positions']:,} tokens that the graph was exported for")
    decoder = OpenvinoDecoder(folder, options.threads, every_position=True)
    found = perplexity_record(graph_losses(decoder, windows, events))
    precision = stated["precision"]
    kept = {"text": EVALUATION, "window": recipe.window, "precision": precision, "arithmetic": decoder.arithmetic}
    write_json(out / RESULT, found | kept)
    events.note(f"perplexity {found['perplexity']:.2f} of the {precision} graph in OpenVINO")
