"""Perplexity of an ONNX graph in ONNX Runtime, so that a precision is judged by the graph that has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from exporters.onnx.session import OnnxDecoder
from pipeline.evaluate import perplexity_record


def graph_perplexity(folder: Path, windows: torch.Tensor, threads: int) -> dict[str, Any]:
    """exp of the mean cross-entropy over windows (N, S), S − 1 predictions each; see ``pipeline.evaluate.perplexity_record``.

    Raises:
        TrimlineError: the graph gives logits of the last position only, or predicts nothing.
    """
    decoder = OnnxDecoder(folder, threads)
    return perplexity_record(list(_losses(decoder, windows)))


def _losses(decoder: OnnxDecoder, windows: torch.Tensor) -> Iterable[float]:
    for window in windows:
        logits = torch.from_numpy(decoder.logits(window[None].numpy()))[0, :-1].float()
        yield torch.nn.functional.cross_entropy(logits, window[1:]).item()
