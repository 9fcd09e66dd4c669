"""The rebuild gate: the written folder, opened by its real loader, against the dense model with the plan applied.

Neither side is read by the code that cut and wrote: transformers loads the dense model, and the plan changes its parameters in
memory; transformers loads the smaller one. So a tensor that surgery read wrongly, or wrote wrongly, is seen. A larger model that
holds the language model is loaded whole on both sides, and shown images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.architecture.families import Sublayer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import profile_of
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import GATE, read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import LogitDifference, compare_logits, demand
from pipeline.evaluate.settings import CONFIG
from pipeline.live.paging import weights_bytes
from pipeline.live.untouched import load_untouched
from pipeline.plan.places import check_same_model
from pipeline.plan.plan import Plan
from pipeline.rebuild.biases import for_profile
from pipeline.rebuild.description import check_description, is_stock
from pipeline.rebuild.images import demand_same_beside, demand_seen, image_readings, sums_beside
from pipeline.rebuild.masked import open_masked
from pipeline.rebuild.readings import GateReading, cache_comparison, decoded, logits_of, readings_for
from pipeline.rebuild.settings import demand_settings


@dataclass(frozen=True)
class RebuildOutcome:
    """The gate in one dtype: the rebuilt model against the masked dense one, and against itself without a cache.

    Attributes:
        dtype: that both were loaded in.
        tensors: that the rebuilt model has.
        masked_dense: reading by reading, by its name.
        cache: greedy tokens with the cache, against one pass over them.
        dense_cache: where the dense model itself computes other logits with its cache than without, by a fault of the stock class:
            the rebuilt model with its cache against the dense one with its own. None elsewhere.
    """

    dtype: torch.dtype
    tensors: int
    masked_dense: dict[str, LogitDifference]
    cache: LogitDifference
    dense_cache: LogitDifference | None = None

    @property
    def same(self) -> bool:
        """Whether it computes what the masked dense one computes, without a cache."""
        return all(found.passed for found in self.masked_dense.values())

    @property
    def passed(self) -> bool:
        return self.same and (self.cache if self.dense_cache is None else self.dense_cache).passed

    def as_record(self) -> dict[str, Any]:
        first, *more = self.masked_dense
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "masked_dense": self.masked_dense[first].as_record(),
            **{name: self.masked_dense[name].as_record() for name in more},
            "cache": self.cache.as_record(),
            **({} if self.dense_cache is None else {"dense_cache": self.dense_cache.as_record()}),
        }


def gate(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, events: Events) -> None:
    """Opens ``out``, compares it with the masked dense model and with itself without a cache; writes gate.json.

    In fp32 first. A half-pruned model can amplify rounding beyond the bar (1.8e-3 where 3.2e-4 is allowed was seen,
    with a difference of 0 in fp64), so fp64 decides where fp32 fails: what it still sees is a fault.

    Raises:
        GateError: a comparison is beyond its bar in both dtypes, loaded and stored tensors are not the same set, or what stands
            beside the weights is not as it should be.
    """
    settings = demand_settings(checkpoint.folder, plan, out, options.trust_remote_code)
    outcomes = _outcomes(checkpoint, plan, out, options, events)
    if not outcomes[-1].passed and is_stock(checkpoint) and options.holds(weights_bytes(checkpoint, torch.float32)):
        check_description(checkpoint.folder)  # what it says of this architecture may be what is wrong
    write_json(out / GATE, _record(outcomes) | {"settings": settings})
    _demand(outcomes, events)


def gate_again(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, events: Events) -> None:
    """As ``gate``, of a folder that was written before; nothing is written into it.

    Raises:
        TrimlineError: the plan is for another model.
        GateError: as ``gate``.
    """
    options.apply()
    check_same_model(checkpoint, plan)
    decision = for_profile(plan, checkpoint.geometry, profile_of(read_json(out / CONFIG)))
    demand_settings(checkpoint.folder, decision, out, options.trust_remote_code)
    _demand(_outcomes(checkpoint, decision, out, options, events), events)


def _outcomes(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, events: Events) -> list[RebuildOutcome]:
    outcomes: list[RebuildOutcome] = []
    for dtype in (torch.float32, torch.float64):
        outcomes.append(_outcome(checkpoint, plan, out, options, dtype, events))
        if outcomes[-1].passed:
            return outcomes
    if outcomes[-1].same:
        outcomes[-1] = replace(outcomes[-1], dense_cache=_dense_cache(checkpoint, plan, out, options))
    return outcomes


def _dense_cache(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions) -> LogitDifference | None:
    """Decoding with the cache, rebuilt against masked dense, in fp64; None where the dense one computes the same with and without its own.

    Seen with transformers 5.23: Nemotron-H bounds its time steps from below in a pass over many tokens, and not in one over one.
    """
    rebuilt = reopened(out, options, torch.float64, "rebuild")
    tokens = readings_for(rebuilt.config, (), options.device)[0].tokens
    found = decoded(rebuilt, tokens)
    del rebuilt  # before the dense model is loaded
    dense = open_masked(checkpoint, plan, options, torch.float64)
    return None if cache_comparison(dense, tokens).passed else compare_logits(decoded(dense, tokens), found)


def _record(outcomes: list[RebuildOutcome]) -> dict[str, Any]:
    last = outcomes[-1]
    return {"passed": last.passed, "tensors": last.tensors, "attempts": [outcome.as_record() for outcome in outcomes]}


def _demand(outcomes: list[RebuildOutcome], events: Events) -> None:
    last = outcomes[-1]
    for name, found in last.masked_dense.items():
        demand(found, "the dense model with the plan applied as zeros", f"the rebuilt checkpoint ({name})")
    if last.dense_cache is None:
        demand(last.cache, "the rebuilt checkpoint without a cache", "the same with its cache")
    else:
        demand(last.dense_cache, "the dense model with the plan applied as zeros and its cache", "the rebuilt checkpoint with its cache")
        events.note(
            f"transformers' own class computes other logits with its cache than without, by {last.cache.difference:.2g}; the smaller model "
            "does as the dense one does"
        )
    worst = max(last.masked_dense.values(), key=lambda found: found.difference / found.bar)
    said = f"rebuilt = masked dense: logits within {worst.difference:.2g} where {worst.bar:.2g} is allowed ({last.dtype})"
    events.gate(said, **_record(outcomes))


def _outcome(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, dtype: torch.dtype, events: Events) -> RebuildOutcome:
    with events.progress(f"gating in {str(dtype).removeprefix('torch.')}", 3) as advance:
        readings, expected, beside = _masked_logits(checkpoint, plan, options, dtype)
        advance(1)
        rebuilt = reopened(out, options, dtype, "rebuild")
        cached = cache_comparison(rebuilt, readings[0].tokens)  # first: a Qwen3-VL keeps positions of the last image it saw
        advance(1)
        kept = plan.selection.blocks
        if checkpoint.nested:
            demand_same_beside(beside, sums_beside(rebuilt))
        found = {
            r.name: compare_logits(e, logits_of(rebuilt, plan.family, r.renumbered(kept))) for r, e in zip(readings, expected, strict=True)
        }
        advance(1)
    return RebuildOutcome(dtype, sum(1 for _ in rebuilt.named_parameters()), found, cached)


def _masked_logits(
    checkpoint: Checkpoint, plan: Plan, options: RunOptions, dtype: torch.dtype
) -> tuple[list[GateReading], list[torch.Tensor], dict[str, str]]:
    """Readings, their logits, and sums of what stands beside the language model."""
    # A local of its own, so that the dense model is freed before the rebuilt one is loaded.
    dense = open_masked(checkpoint, plan, options, dtype)
    mixing = [block for block in plan.selection.blocks if plan.selection.shape(block, checkpoint.geometry).has(Sublayer.ATTENTION)]
    readings = readings_for(dense.config, mixing, options.device)
    if checkpoint.nested is None:
        return readings, [logits_of(dense, plan.family, reading) for reading in readings], {}
    readings += image_readings(dense, checkpoint.nested.wrapper, options.device)
    found = {reading.name: logits_of(dense, plan.family, reading) for reading in readings}
    demand_seen(found, "The dense model with the plan applied as zeros")
    return readings, list(found.values()), sums_beside(dense)


@contextmanager
def fault_of(stage: str) -> Iterator[None]:
    """Makes a ``GateError`` of what is wrong with a folder that ``stage`` has just written: no user gave it."""
    report = f"This is a fault of the {stage}, not of the recipe; please report it with the recipe."
    try:
        yield
    except GateError:
        raise
    except TrimlineError as error:
        raise GateError(error.problem, report) from None


def reopened(out: Path, options: RunOptions, dtype: torch.dtype, stage: str) -> PreTrainedModel:
    """What ``stage`` has written, as transformers itself loads it.

    Raises:
        GateError: it cannot be opened, or its tensors and the model's parameters are not the same set.
    """
    with fault_of(stage):
        model, report = load_untouched(out, options, dtype)
        if report.missing or report.unexpected:
            missing, unexpected = (list(names)[:3] for names in (report.missing, report.unexpected))
            raise TrimlineError(f"The model and the tensors written for it differ: missing {missing}, unexpected {unexpected}.")
    return model
