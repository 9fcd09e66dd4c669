"""SmolLM2 pruned by hand, in the shapes that servers are asked to load. Without compensation they predict badly, and amplify every rounding."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.recipe import Profile
from tests.pipeline.rebuild.cases import Choice, plan_for, rebuilt

NARROW, WIDE = 1280, 1472  # of 1536 channels


def pruned(smollm2: Path, folder: Path, profile: Profile) -> Path:
    """``uniform``: 1280 channels in each block; ``decilm``: 1280 to 1536, a block without attention, one without FFN."""
    source = Checkpoint(smollm2)

    def choose(choice: Choice) -> None:
        for number in range(len(choice.ffn)):
            kept = NARROW if profile is Profile.UNIFORM else (NARROW, WIDE, 1536)[number % 3]
            choice.ffn[number] = strongest(source, number, kept)
        if profile is Profile.DECILM:
            choice.kv[13] = ()
            choice.ffn[17] = ()

    return rebuilt(folder, smollm2, plan_for(smollm2, choose), profile)


def strongest(source: Checkpoint, block: int, kept: int) -> tuple[int, ...]:
    """Channels whose three weight vectors have the largest product of norms."""
    weights = [source.tensor(f"model.layers.{block}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")]
    size = weights[0].norm(dim=1) * weights[1].norm(dim=1) * weights[2].norm(dim=0)
    return tuple(sorted(torch.topk(size, kept).indices.tolist()))
