"""The written checkpoint against the trained model: reopened by its real loader it computes the same, with a cache too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import LogitDifference, compare_logits, demand, gate_tokens
from pipeline.live.loading import load_with_report
from pipeline.rebuild.stage import GREEDY_TOKENS, PROMPT_TOKENS, cache_comparison


@dataclass(frozen=True)
class RecoveryOutcome:
    """The gate in one dtype."""

    dtype: torch.dtype
    reopened: LogitDifference
    cache: LogitDifference

    @property
    def passed(self) -> bool:
        return self.reopened.passed and self.cache.passed

    def as_record(self) -> dict[str, Any]:
        cache = self.cache.as_record() | {"tokens": GREEDY_TOKENS}
        return {"dtype": str(self.dtype).removeprefix("torch."), "reopened": self.reopened.as_record(), "cache": cache}


def gate(trained: PreTrainedModel, out: Path, options: RunOptions, events: Events) -> list[RecoveryOutcome]:
    """Compares in fp32, and in fp64 where that fails, as the rebuild gate does; ``trained`` may end in fp64.

    Args:
        trained: the model in memory, with the values that were written, in fp32.
        out: the folder that was written.
        options: device.
        events: progress.

    Raises:
        GateError: a comparison is beyond its bar in both dtypes, or tensors and parameters are not the same set.
    """
    tokens = gate_tokens(Checkpoint(out).geometry.vocab).to(options.device)
    trained.eval()
    outcomes: list[RecoveryOutcome] = []
    for dtype in (torch.float32, torch.float64):
        with events.progress(f"gating in {str(dtype).removeprefix('torch.')}", 2) as advance:
            reopened = _reopened(out, options, dtype)
            against_trained = compare_logits(_logits(trained.to(dtype=dtype), tokens), _logits(reopened, tokens))  # type: ignore[call-arg]
            advance(1)
            cached = cache_comparison(reopened, tokens[:, :PROMPT_TOKENS], GREEDY_TOKENS)
            advance(1)
        outcomes.append(RecoveryOutcome(dtype, against_trained, cached))
        if outcomes[-1].passed:
            break
    demand(outcomes[-1].reopened, "the trained model", "the written checkpoint")
    demand(outcomes[-1].cache, "the written checkpoint without a cache", "the same with its cache")
    return outcomes


def _reopened(out: Path, options: RunOptions, dtype: torch.dtype) -> PreTrainedModel:
    model, report = load_with_report(out, dtype=dtype, device=options.device, trust_remote_code=options.trust_remote_code)
    if report.missing or report.unexpected:
        raise GateError(
            f"The model and the tensors written for it differ: missing {list(report.missing)[:3]}, unexpected {list(report.unexpected)[:3]}.",
            "This is a fault of the recovery, not of the recipe; please report it with the recipe.",
        )
    return model


def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens, use_cache=False).logits
