"""The rebuild stage: cut, write, and have the gate look at what was written."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.checkpoints.modelling import shipped_files
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.folder import PLAN
from pipeline.plan.places import check_same_model
from pipeline.plan.plan import Plan
from pipeline.rebuild.biases import for_profile
from pipeline.rebuild.config import smaller_config
from pipeline.rebuild.gate import gate
from pipeline.rebuild.profiles import check_pinned, check_profile
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.surgery import Cut
from pipeline.rebuild.tokenizer import name_tokenizer_class
from pipeline.sources.companions import copy_companions


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
    checkpoint.say_passed_over(events)
    check_same_model(checkpoint, decision)
    decision = for_profile(decision, checkpoint.geometry, recipe.profile)
    result = decision.geometry(checkpoint.geometry)
    check_pinned(checkpoint.geometry, decision.selection)
    check_profile(decision.family, checkpoint.geometry, result, recipe.profile, checkpoint.config)
    with events.progress("cutting and writing", 1) as advance:
        config = checkpoint.whole_config(smaller_config(checkpoint.config, decision, recipe.profile))
        write_checkpoint(out, config, checkpoint.whole_tensors(Cut(checkpoint, decision), result))
        advance(1)
    for name, text in shipped_files(decision.family, recipe.profile).items():
        (out / name).write_text(text, encoding="utf-8")
    copy_companions(source, out, events)
    name_tokenizer_class(source, out, options.trust_remote_code)
    shutil.copyfile(plan / PLAN, out / PLAN)
    gate(checkpoint, decision, out, options, events)
