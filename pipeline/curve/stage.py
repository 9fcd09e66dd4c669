"""The curve stage: the same plan with other counts of experts, none of them rebuilt.

The dense model in which the removed experts cannot be chosen computes what the smaller model computes (``docs/experts.md``): the rebuild
gate proves it to 1e-5. So one model in memory stands for all counts. Which experts stay comes from the scores that the plan kept, so
nothing is calibrated again; at the plan's own count its own choice stands.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.curve.counts import Kept, best, counts_for, first_scores, most_experts
from pipeline.curve.folder import RESULT
from pipeline.curve.judging import gone_of, judged
from pipeline.curve.recipe import CurveSlice
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_tokenizer
from pipeline.live.paging import weights_bytes
from pipeline.live.untouched import load_untouched
from pipeline.plan.places import check_same_model
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.masked import apply_plan
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.roles import texts_of
from pipeline.sources.windows import check_windows, consecutive_windows


def curve(
    source: Path, texts: Path, plan: Path, recipe: CurveSlice, evaluated: EvaluateSlice, options: RunOptions, out: Path, events: Events
) -> None:
    """Stage: writes curve.json: perplexity, divergence and agreement over counts of experts.

    Args:
        source: a source artefact or checkpoint folder: the dense model.
        texts: folder with the texts that evaluate; the first is read.
        plan: folder of a plan that removes experts.
        recipe: which counts.
        evaluated: windows of the text.
        options: device, memory and threads; the dtype is the checkpoint's own.
        out: empty folder.
        events: progress.

    Raises:
        TrimlineError: the plan is of another model or scored no experts, or the text is too short.
    """
    options.apply()
    checkpoint, decision = Checkpoint(checkpoint_folder(source)), Plan.read(plan)
    check_same_model(checkpoint, decision)
    geometry, scores = checkpoint.geometry, first_scores(decision)
    scores = {block: scores[block] for block in decision.selection.blocks if len(scores.get(block, ()))}
    if not scores:
        raise TrimlineError("The plan has no scores of experts, so there is no curve over their counts.", "Prune space expert.")
    counts, ruled_out = counts_for(recipe.removed, geometry)
    own: Kept = {block: decision.selection.experts_of(block) for block in scores}
    mine = max(map(len, own.values()))
    ranked = {count: best(scores, count, geometry) for count in {*counts, mine}}
    follows = ranked[mine] == own
    chosen = dict(sorted((ranked | {mine: own}).items(), reverse=True))
    windows, name = _windows(checkpoint, texts, evaluated)
    model, dense = _models(checkpoint, decision, options, events)
    experts = {number: block.experts for number, block in enumerate(geometry.blocks)}
    everything = {block: tuple(range(experts[block])) for block in scores}
    choices = {most_experts(geometry): everything} | chosen
    found = judged(model, geometry.family, windows, [gone_of(kept, experts) for kept in choices.values()], dense, events)
    points: list[dict[str, Any]] = []
    for kept, one in zip(choices, found, strict=True):
        points.append({"kept": kept, "planned": kept == mine} | one.record())
        events.note(f"perplexity {points[-1]['perplexity']:.2f} with {kept} of {most_experts(geometry)} experts")
    write_json(
        out / RESULT,
        {
            "text": name,
            "window": evaluated.window,
            "experts": most_experts(geometry),
            "chosen": geometry.routing.chosen,
            "points": points,
            "ruled out": [asdict(one) for one in ruled_out],
            "planned as ranked": follows,
            "other units removed": not _experts_alone(decision, Selection.everything(geometry)),
        },
    )


def _windows(checkpoint: Checkpoint, texts: Path, evaluated: EvaluateSlice) -> tuple[torch.Tensor, str]:
    text = texts_of(texts, "evaluation")[0]
    windows = consecutive_windows(load_tokenizer(checkpoint.folder), text.text, evaluated.windows, evaluated.window)
    check_windows(windows, checkpoint.geometry)
    return windows, text.name


def _models(checkpoint: Checkpoint, plan: Plan, options: RunOptions, events: Events) -> tuple[nn.Module, nn.Module | None]:
    """The dense model with all of the plan but its experts applied as zeros, and what it is compared with."""

    def opened() -> nn.Module:
        return load_untouched(checkpoint.folder, options, checkpoint.dtype, whole=False)[0]

    everything = Selection.everything(checkpoint.geometry)
    model = opened()
    if _experts_alone(plan, everything):
        return model, model
    dense = None
    if options.holds(2 * weights_bytes(checkpoint, checkpoint.dtype)):
        dense = opened()
    else:
        events.note("memory does not hold the dense model twice, so predictions with other counts of experts are not compared with its own")
    apply_plan(model, checkpoint, replace(plan, selection=replace(plan.selection, experts=everything.experts)))
    return model, dense


def _experts_alone(plan: Plan, everything: Selection) -> bool:
    changes = plan.updates or plan.biases or plan.sparse
    return not changes and replace(plan.selection, experts=everything.experts) == everything
