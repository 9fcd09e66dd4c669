"""Perplexity of a graph in ONNX Runtime on a fixed text, beside that of the checkpoint it came from, in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

from exporters.decoder import GraphDecoder
from exporters.onnx.lowering.config import context_length
from exporters.onnx.running.session import OnnxDecoder
from exporters.text.tokens import has_tokenizer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.perplexity import perplexity_record
from pipeline.live.loading import load_tokenizer
from pipeline.sources.recipe import TextSource
from pipeline.sources.text import describe, load_text
from pipeline.sources.windows import check_windows, consecutive_windows

WINDOWS, WINDOW = 4, 512
POSITIONS = 64  # whose probabilities are in memory at once: those of a window are as large as its logits
TEXT = TextSource()  # the built-in one
NO_TOKENIZER = "the checkpoint has no tokenizer, so no text can be read"


def fixed_windows(source: Checkpoint, precision: str, trust_remote_code: bool = False, longest: int = WINDOW) -> torch.Tensor | None:
    """Token ids of the fixed text, (4, up to 512 or ``longest``); None where the checkpoint has no tokenizer.

    Raises:
        TrimlineError: there is none, and only fp32 can be judged without.
    """
    found = _windows(source, trust_remote_code, longest, "evaluation")
    if found is None and precision != "fp32":
        raise TrimlineError(
            f"{source.folder} has no tokenizer, without which {precision} cannot be judged by perplexity.",
            "Put the tokenizer's files beside it, or export in fp32.",
        )
    return found


def calibration_windows(source: Checkpoint, trust_remote_code: bool = False) -> torch.Tensor | None:
    """Likewise of the other half of the built-in text, on which nothing is judged."""
    return _windows(source, trust_remote_code, WINDOW, "calibration")


def _windows(source: Checkpoint, trust_remote_code: bool, longest: int, part: Literal["calibration", "evaluation"]) -> torch.Tensor | None:
    if not has_tokenizer(source.folder):
        return None
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    windows = consecutive_windows(tokenizer, load_text(TEXT, part), WINDOWS, min(WINDOW, longest, context_length(source)))
    check_windows(windows, source.geometry)
    return windows


def graph_losses(decoder: GraphDecoder, windows: torch.Tensor, events: Events) -> list[float]:
    """Mean cross-entropy of each window, nats per predicted token, from a graph that gives all positions."""
    losses = []
    with events.progress(f"perplexity of the graph over {windows.numel():,} tokens", len(windows)) as advance:
        for window in windows:
            logits = torch.from_numpy(decoder.logits(window[None].numpy())[0, :-1])
            parts = zip(logits.split(POSITIONS), window[1:].split(POSITIONS), strict=True)
            losses.append(sum(cross_entropy(part.float(), wanted, reduction="sum").item() for part, wanted in parts) / len(logits))
            advance(1)
    return losses


def graph_perplexity(folder: Path, windows: torch.Tensor, threads: int) -> dict[str, Any]:
    """Of an exported folder, on windows (N, S); see ``pipeline.evaluate.perplexity.perplexity_record``."""
    return perplexity_record(graph_losses(OnnxDecoder(folder, threads, every_position=True), windows, Events()))


def compared(checkpoint: list[float], graph: list[float], bar: float) -> dict[str, Any]:
    """What gate.json says of it: both perplexities, their ratio, the bar, and whether it is met."""
    reference = perplexity_record(checkpoint)["perplexity"]
    ratio = float(torch.tensor([g - c for c, g in zip(checkpoint, graph, strict=True)], dtype=torch.float64).mean().exp())
    return {
        "run": True,
        "evaluation": describe(TEXT, "evaluation"),
        "windows": len(checkpoint),
        "checkpoint": reference,
        "graph": reference * ratio,
        "ratio": ratio,
        "bar": bar,
        "passed": ratio <= bar,  # False for NaN
    }


def demand_perplexity(
    record: dict[str, Any], folder: object, precision: str, events: Events, form: str = "ONNX", other: str = "another precision"
) -> None:
    """Says what was found in a ``form``, and fails the stage where the ratio is above its bar; ``other`` may do better.

    Raises:
        GateError: says both perplexities.
    """
    events.gate(f"{form}, perplexity {record['graph']:.2f}, the checkpoint's {record['checkpoint']:.2f}", **record)
    if not record["passed"]:
        raise GateError(
            f"{folder} ({precision}) has a perplexity of {record['graph']:.2f} where its checkpoint has {record['checkpoint']:.2f}: "
            f"{record['ratio']:.3f} times as much, and {record['bar']:g} is allowed.",
            f"Export in {other}, or raise export.perplexity_bar.",
        )
