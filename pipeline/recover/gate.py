"""The written checkpoint against the trained model: reopened by its real loader it computes the same, with a cache too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.architecture.families import Sublayer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import LogitDifference, compare_logits, demand
from pipeline.evaluate.settings import CONFIG, MayBe, demand_same_config
from pipeline.rebuild.gate import fault_of, reopened
from pipeline.rebuild.images import demand_same_beside, sums_beside
from pipeline.rebuild.readings import cache_comparison, logits_of, readings_for
from pipeline.rebuild.settings import GONE, demand_companions

STAGE = "recovery"


@dataclass(frozen=True)
class RecoveryOutcome:
    """The gate in one dtype: reading by reading against the trained model, and with a cache against itself without."""

    dtype: torch.dtype
    readings: dict[str, LogitDifference]
    cache: LogitDifference

    @property
    def passed(self) -> bool:
        return self.cache.passed and all(found.passed for found in self.readings.values())

    @property
    def reopened(self) -> LogitDifference:
        """Against the trained model, at the first positions."""
        return next(iter(self.readings.values()))

    def as_record(self) -> dict[str, Any]:
        first, *more = self.readings
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "reopened": self.reopened.as_record(),
            **{name: self.readings[name].as_record() for name in more},
            "cache": self.cache.as_record(),
        }


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
    with fault_of(STAGE):
        geometry = Checkpoint(out).geometry
    mixing = [number for number, block in enumerate(geometry.blocks) if block.has(Sublayer.ATTENTION)]
    readings = readings_for(trained.config, mixing, options.device)
    trained.eval()
    outcomes: list[RecoveryOutcome] = []
    for dtype in (torch.float32, torch.float64):
        with events.progress(f"gating in {str(dtype).removeprefix('torch.')}", 2) as advance:
            reread = reopened(out, options, dtype, STAGE)
            trained.to(dtype=dtype)  # type: ignore[call-arg]
            found = {
                r.name: compare_logits(logits_of(trained, geometry.family, r), logits_of(reread, geometry.family, r)) for r in readings
            }
            advance(1)
            cached = cache_comparison(reread, readings[0].tokens)
            advance(1)
        outcomes.append(RecoveryOutcome(dtype, found, cached))
        if outcomes[-1].passed:
            break
    for name, comparison in outcomes[-1].readings.items():
        demand(comparison, "the trained model", f"the written checkpoint ({name})")
    demand(outcomes[-1].cache, "the written checkpoint without a cache", "the same with its cache")
    return outcomes


def demand_settings(checkpoint: Checkpoint, out: Path, options: RunOptions) -> dict[str, Any]:
    """Compares all that is no weight with the checkpoint that was trained, which training changes nothing of.

    Raises:
        GateError: something is missing or says other things.
    """
    # What opening a checkpoint settles, the written one says: a head of its own, weights that are not quantised any more.
    settled = {"tie_word_embeddings": MayBe((checkpoint.geometry.tied,)), "quantization_config": GONE}
    changes = {key: may for key, may in settled.items() if key in read_json(checkpoint.folder / CONFIG)}
    keys = demand_same_config(checkpoint.folder, out, changes, options.trust_remote_code)
    if checkpoint.nested:
        trained, written = (sums_beside(reopened(folder, options, torch.float32, STAGE)) for folder in (checkpoint.folder, out))
        demand_same_beside(trained, written)
    return {"config keys": keys} | demand_companions(checkpoint.folder, out, options.trust_remote_code)
