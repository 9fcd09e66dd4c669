"""Perplexity of an exported graph on the evaluation text: what a report of fewer bits has to show instead of the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from exporters.folder import CONFIG, EXPORT, GENAI_CONFIG
from exporters.onnx.gate.perplexity import graph_losses
from exporters.onnx.running.session import OnnxDecoder
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, perplexity_record
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import as_trimline_error, load_tokenizer, quiet_transformers
from pipeline.sources.roles import texts_of
from pipeline.sources.windows import check_length, check_windows, consecutive_windows


def evaluate_graph(
    checkpoint: Path | None, folder: Path, texts: Path, recipe: EvaluateSlice, options: RunOptions, out: Path, events: Events
) -> None:
    """Stage: writes perplexity.json, as ``pipeline.evaluate.perplexity`` does for a checkpoint.

    Args:
        checkpoint: what was exported; its tokenizer is read. None reads that which the export carries.
        folder: the export.
        texts: folder with the texts that evaluate; the first is read.
        recipe: windows.
        options: device and threads.
        out: empty folder.
        events: progress.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or the graph does not run.
    """
    most = None
    if (folder / GENAI_CONFIG).is_file():  # a fused graph may end before its checkpoint does
        most = int(read_json(folder / GENAI_CONFIG)["model"]["context_length"])
    text, windows = windows_to_judge(checkpoint, folder, texts, recipe, options, most)
    decoder = OnnxDecoder(folder, options.threads, options.device, every_position=True)
    found = perplexity_record(graph_losses(decoder, windows, events))
    precision = read_json(folder / EXPORT)["precision"]
    write_json(out / RESULT, found | {"text": text, "window": recipe.window, "precision": precision})
    events.note(f"perplexity {found['perplexity']:.2f} of the {precision} graph")


def windows_to_judge(
    checkpoint: Path | None, folder: Path, texts: Path, recipe: EvaluateSlice, options: RunOptions, most: int | None
) -> tuple[str, torch.Tensor]:
    """Name and windows (N, S) of the first text that evaluates, as ``evaluate_graph`` reads it; a graph may be made for ``most`` tokens.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or a window longer than model or graph allow.
    """
    first = texts_of(texts, "evaluation")[0]
    if checkpoint is None:
        tokenizer, geometry = carried_tokenizer(folder), Geometry.from_config(read_json(folder / CONFIG))
    else:
        tokenizer, geometry = load_tokenizer(checkpoint, trust_remote_code=options.trust_remote_code), Checkpoint(checkpoint).geometry
    windows = consecutive_windows(tokenizer, first.text, recipe.windows, recipe.window)
    check_windows(windows, geometry)
    if most is not None:
        check_length(windows, most, f"{most:,} tokens that the graph was exported for")
    return first.name, windows


def carried_tokenizer(folder: Path) -> Any:
    """The tokenizer in an exported folder.

    Raises:
        TrimlineError: there is none that transformers opens without code.
    """
    with quiet_transformers(), as_trimline_error(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
