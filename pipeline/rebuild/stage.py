"""The rebuild stage: cut, write, reopen with the real loader, and gate against the dense model with the plan applied."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.checkpoints.modelling import profile_of, shipped_files
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.files import GATE, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import LogitDifference, compare_logits, demand, gate_tokens
from pipeline.live.loading import load_with_report
from pipeline.live.paging import paged_with_report, weights_bytes
from pipeline.plan.folder import PLAN
from pipeline.plan.places import check_same_model
from pipeline.plan.plan import Plan
from pipeline.rebuild.biases import for_profile
from pipeline.rebuild.config import smaller_config
from pipeline.rebuild.masked import open_masked
from pipeline.rebuild.profiles import check_profile
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.surgery import Cut

GREEDY_TOKENS = 32
PROMPT_TOKENS = 16
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip


def rebuild(source: Path, plan: Path, recipe: RebuildSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Writes the smaller checkpoint into ``out``: weights in the source's dtype, config, modelling files where the
    profile needs them, tokenizer files, ``plan.json`` and ``gate.json``.

    Raises:
        TrimlineError: the profile cannot express the plan, or the plan is for another model; nothing is written then.
        GateError: the reopened checkpoint does not compute what the masked dense model computes.
    """
    options.apply()
    checkpoint, decision = Checkpoint(source), Plan.read(plan)
    checkpoint.demand_no_doubt()
    check_same_model(checkpoint, decision)
    decision = for_profile(decision, checkpoint.geometry, recipe.profile)
    result = decision.geometry(checkpoint.geometry)
    check_profile(decision.family, checkpoint.geometry, result, recipe.profile, checkpoint.config)
    with events.progress("cutting and writing", 1) as advance:
        write_checkpoint(out, smaller_config(checkpoint.config, decision, recipe.profile), Cut(checkpoint, decision))
        advance(1)
    for name, text in shipped_files(decision.family, recipe.profile).items():
        (out / name).write_text(text, encoding="utf-8")
    copy_companions(source, out)
    shutil.copyfile(plan / PLAN, out / PLAN)
    gate(checkpoint, decision, out, options, events)


def copy_companions(source: Path, out: Path) -> None:
    """Copies what belongs to a checkpoint beside weights and config: tokenizer, templates, generation config, licence."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


@dataclass(frozen=True)
class RebuildOutcome:
    """The gate in one dtype: the rebuilt model against the masked dense one, and against itself without a cache."""

    dtype: torch.dtype
    tensors: int
    masked_dense: LogitDifference
    cache: LogitDifference

    @property
    def passed(self) -> bool:
        return self.masked_dense.passed and self.cache.passed

    def as_record(self) -> dict[str, Any]:
        cache = self.cache.as_record() | {"tokens": GREEDY_TOKENS}
        return {"dtype": str(self.dtype).removeprefix("torch."), "masked_dense": self.masked_dense.as_record(), "cache": cache}


def gate(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, events: Events) -> None:
    """Reopens ``out``, compares it with the masked dense model and with itself without a cache; writes gate.json.

    In fp32 first. A half-pruned model can amplify rounding beyond the bar (1.8e-3 where 3.2e-4 is allowed was seen,
    with a difference of 0 in fp64), so fp64 decides where fp32 fails: what it still sees is a fault.

    Raises:
        GateError: a comparison is beyond its bar in both dtypes, or loaded and stored tensors are not the same set.
    """
    outcomes = _outcomes(checkpoint, plan, out, options, events)
    write_json(out / GATE, _record(outcomes))
    _demand(outcomes, events)


def gate_again(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, events: Events) -> None:
    """As ``gate``, of a folder that was written before; nothing is written into it.

    Raises:
        TrimlineError: the plan is for another model.
        GateError: as ``gate``.
    """
    options.apply()
    check_same_model(checkpoint, plan)
    decision = for_profile(plan, checkpoint.geometry, profile_of(Checkpoint(out).config))
    _demand(_outcomes(checkpoint, decision, out, options, events), events)


def _outcomes(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, events: Events) -> list[RebuildOutcome]:
    outcomes: list[RebuildOutcome] = []
    for dtype in (torch.float32, torch.float64):
        outcomes.append(_outcome(checkpoint, plan, out, options, dtype, events))
        if outcomes[-1].passed:
            break
    return outcomes


def _record(outcomes: list[RebuildOutcome]) -> dict[str, Any]:
    last = outcomes[-1]
    return {"passed": last.passed, "tensors": last.tensors, "attempts": [outcome.as_record() for outcome in outcomes]}


def _demand(outcomes: list[RebuildOutcome], events: Events) -> None:
    last = outcomes[-1]
    demand(last.masked_dense, "the dense model with the plan applied as zeros", "the rebuilt checkpoint")
    demand(last.cache, "the rebuilt checkpoint without a cache", "the same with its cache")
    difference, bar = last.masked_dense.difference, last.masked_dense.bar
    said = f"rebuilt = masked dense: logits within {difference:.2g} where {bar:.2g} is allowed ({last.dtype})"
    events.gate(said, **_record(outcomes))


def _outcome(checkpoint: Checkpoint, plan: Plan, out: Path, options: RunOptions, dtype: torch.dtype, events: Events) -> RebuildOutcome:
    tokens = gate_tokens(checkpoint.geometry.vocab).to(options.device)
    with events.progress(f"gating in {str(dtype).removeprefix('torch.')}", 3) as advance:
        reference = _masked_logits(checkpoint, plan, tokens, options, dtype)
        advance(1)
        rebuilt, count = _reopened(out, options, dtype)
        against_masked = compare_logits(reference, _logits(rebuilt, tokens))
        advance(1)
        cached = cache_comparison(rebuilt, tokens[:, :PROMPT_TOKENS], GREEDY_TOKENS)
        advance(1)
    return RebuildOutcome(dtype, count, against_masked, cached)


def cache_comparison(model: PreTrainedModel, prompt: torch.Tensor, count: int) -> LogitDifference:
    """Greedy decoding of ``count`` tokens with the KV cache, against one forward over the same tokens without it.

    Args:
        prompt: token ids, shape (rows, positions).
    """
    sequence, steps, past = prompt, [], None
    with torch.inference_mode():
        for _ in range(count):
            output = model(sequence if past is None else sequence[:, -1:], past_key_values=past, use_cache=True)
            past = output.past_key_values
            steps.append(output.logits[:, -1])
            sequence = torch.cat((sequence, steps[-1].argmax(-1, keepdim=True)), dim=1)
    whole = _logits(model, sequence[:, :-1])[:, prompt.shape[1] - 1 :]
    return compare_logits(whole, torch.stack(steps, dim=1))


def _masked_logits(checkpoint: Checkpoint, plan: Plan, tokens: torch.Tensor, options: RunOptions, dtype: torch.dtype) -> torch.Tensor:
    # A local of its own, so that the dense model is freed before the rebuilt one is loaded.
    dense, paging = open_masked(checkpoint, plan, options, dtype)
    logits = _logits(dense, tokens)
    if paging is not None:
        paging.close()
    return logits


def _reopened(out: Path, options: RunOptions, dtype: torch.dtype) -> tuple[PreTrainedModel, int]:
    written = Checkpoint(out)
    if options.holds(weights_bytes(written, dtype)):
        model, report = load_with_report(out, dtype=dtype, device=options.device)
    else:
        model, report = paged_with_report(out, options, dtype)
    if report.missing or report.unexpected:
        raise GateError(
            f"The model and the tensors written for it differ: missing {list(report.missing)[:3]}, unexpected {list(report.unexpected)[:3]}.",
            "This is a fault of the rebuild, not of the recipe; please report it with the recipe.",
        )
    return model, len(written.locations)


def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens, use_cache=False).logits
