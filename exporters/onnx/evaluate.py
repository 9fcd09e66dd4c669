"""Perplexity of an exported graph on the evaluation text: what a report of fewer bits has to show instead of the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from exporters.onnx.perplexity import graph_losses
from exporters.onnx.session import OnnxDecoder
from pipeline.calibrate.windows import check_windows, consecutive_windows
from pipeline.checkpoint import Checkpoint, read_json, write_json
from pipeline.evaluate import RESULT, perplexity_record
from pipeline.events import Events
from pipeline.geometry import Geometry
from pipeline.loading import as_trimline_error, load_tokenizer, quiet_transformers
from pipeline.options import RunOptions
from pipeline.recipe import EvaluateSlice


def evaluate_graph(
    checkpoint: Path | None, folder: Path, texts: Path, recipe: EvaluateSlice, options: RunOptions, out: Path, events: Events
) -> None:
    """Stage: writes perplexity.json, as ``pipeline.evaluate`` does for a checkpoint.

    Args:
        checkpoint: what was exported; its tokenizer is read. None reads that which the export carries.
        folder: the export.
        texts: folder with evaluation.txt.
        recipe: windows.
        options: device and threads.
        out: empty folder.
        events: progress.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or the graph does not run.
    """
    text = (texts / "evaluation.txt").read_text(encoding="utf-8")
    if checkpoint is None:
        tokenizer, geometry = carried_tokenizer(folder), Geometry.from_config(read_json(folder / "checkpoint_config.json"))
    else:
        tokenizer, geometry = load_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code), Checkpoint(checkpoint).geometry
    windows = consecutive_windows(tokenizer, text, recipe.windows, recipe.window)
    check_windows(windows, geometry)
    decoder = OnnxDecoder(folder, options.threads, options.device, every_position=True)
    found = perplexity_record(graph_losses(decoder, windows, events))
    precision = read_json(folder / "export.json")["precision"]
    write_json(out / RESULT, found | {"text": "evaluation.txt", "window": recipe.window, "precision": precision})
    events.note(f"perplexity {found['perplexity']:.2f} of the {precision} graph")


def carried_tokenizer(folder: Path) -> Any:
    """The tokenizer in an exported folder.

    Raises:
        TrimlineError: there is none that transformers opens without code.
    """
    with quiet_transformers(), as_trimline_error(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
