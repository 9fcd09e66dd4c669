"""SmolLM2 pruned by hand, in the shapes that servers are asked to load.

It has to keep its language: what predicts nothing amplifies every rounding, and may say halves of characters without end,
which llama-cpp-python does not count against ``max_tokens``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from exporters.onnx.gate.perplexity import calibration_windows
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.live.loading import load_model
from tests.pipeline.rebuild.cases import Choice, Units, plan_for, rebuilt

NARROW, WIDE = 1280, 1472  # of 1536 channels


def pruned(smollm2: Path, folder: Path, profile: Profile) -> Path:
    """``uniform``: 1280 channels in each block; ``decilm``: 1280 to 1536, a block without attention, one without FFN."""

    def choose(choice: Choice) -> None:
        blocks = len(choice.ffn)
        choice.ffn = strongest(smollm2, [NARROW if profile is Profile.UNIFORM else (NARROW, WIDE, 1536)[i % 3] for i in range(blocks)])
        if profile is Profile.DECILM:
            choice.kv[13] = ()
            choice.ffn[17] = ()

    return rebuilt(folder, smollm2, plan_for(smollm2, choose), profile)


def strongest(smollm2: Path, kept: list[int]) -> Units:
    """Channels, as many in each block as ``kept`` says, that carry most into the residual stream: norm of input times norm of column."""
    model, scores = load_model(smollm2, dtype=torch.float32), []
    for block in model.model.layers:
        projection = block.mlp.down_proj
        projection.register_forward_pre_hook(lambda linear, given: scores.append(given[0].norm(dim=(0, 1)) * linear.weight.norm(dim=0)))
    with torch.inference_mode():
        model(calibration_windows(Checkpoint(smollm2)))
    return [tuple(sorted(torch.topk(score, most).indices.tolist())) for score, most in zip(scores, kept, strict=True)]
