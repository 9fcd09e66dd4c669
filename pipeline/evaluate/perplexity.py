"""The evaluate stage: perplexity over non-overlapping windows, kept per window so that two models can be paired."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.architecture.families import Family
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.agreement import agreement_record, window_agreements
from pipeline.evaluate.positions import ReadWindow, position_record, reading
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.evaluate.retrieval import RESULT as RETRIEVAL
from pipeline.evaluate.retrieval import retrieval_record
from pipeline.live.blocks import blocks_of, enter, logits_from, through_all
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.live.paging import open_model, weights_bytes
from pipeline.sources.model import checkpoint_folder
from pipeline.sources.roles import texts_of
from pipeline.sources.windows import check_windows, consecutive_windows

RESULT = "perplexity.json"
LARGEST_LOSS = 700.0  # nats; exp of more is beyond a double


def evaluate(
    checkpoint: Path, texts: Path, recipe: EvaluateSlice, options: RunOptions, out: Path, events: Events, dense: Path | None = None
) -> None:
    """Stage: writes perplexity.json: of the first text, and of every one under ``texts``; retrieval.json where the recipe asks for it.

    Args:
        checkpoint: a source artefact, a checkpoint folder or a rebuild artefact.
        texts: folder with the texts that evaluate.
        recipe: windows.
        options: device and threads; the dtype is the checkpoint's own.
        out: empty folder.
        events: progress.
        dense: the model that the predictions are compared with, where memory holds both whole; None compares with nothing.

    Raises:
        TrimlineError: a text is shorter than the recipe asks for, or the checkpoint does not load.
    """
    options.apply()
    folder = checkpoint_folder(checkpoint)
    source = Checkpoint(folder)
    source.say_doubts(events)
    tokenizer = load_tokenizer(folder)
    judged = {text.name: consecutive_windows(tokenizer, text.text, recipe.windows, recipe.window) for text in texts_of(texts, "evaluation")}
    check_windows(torch.cat(list(judged.values())), source.geometry)
    model, paging = open_model(folder, options)
    beside = None if dense is None or paging is not None else _beside(checkpoint_folder(dense), source, options, events)
    found = []
    for name, windows in judged.items():
        if beside is None:
            read = window_readings(model, windows, events) if paging is None else paged_readings(model, paging.family, windows, events)
            more: dict[str, float] = {}
        else:
            agreements = window_agreements(model, beside, windows, events)
            read, more = [one.read for one in agreements], agreement_record(agreements)
        if not all(math.isfinite(one.loss) for one in read):
            source.check_finite()  # a tensor that is no number is named rather than what comes of it
        found.append({"text": name} | perplexity_record([one.loss for one in read]) | more | position_record(read))
        events.note(f"perplexity {found[-1]['perplexity']:.2f} on {name}")
    how = {"window": recipe.window, "dtype": str(model.dtype).removeprefix("torch.")}
    first = {key: value for key, value in found[0].items() if key != "position_losses"}
    write_json(out / RESULT, first | how | {"texts": found})
    if recipe.retrieval is not None and paging is None:
        found_again = retrieval_record(model, tokenizer, source.geometry.context, recipe.retrieval, events)
        write_json(out / RETRIEVAL, found_again)
    elif recipe.retrieval is not None:
        events.note("memory does not hold the model whole, so it is not asked for names in long texts")


def _beside(dense: Path, source: Checkpoint, options: RunOptions, events: Events) -> nn.Module | None:
    """The dense model, where memory holds it beside the one that is evaluated."""
    both = (Checkpoint(dense), source)
    if not options.holds(sum(weights_bytes(one, one.dtype) for one in both)):
        events.note("memory does not hold the dense model beside this one, so their predictions are not compared")
        return None
    return load_model(dense, dtype=both[0].dtype, device=options.device, trust_remote_code=options.trust_remote_code)


def window_losses(model: nn.Module, windows: torch.Tensor, events: Events) -> list[float]:
    """Mean cross-entropy of each window, nats per predicted token; ``windows`` is (N, S), S − 1 targets each."""
    return [one.loss for one in window_readings(model, windows, events)]


@torch.inference_mode()
def window_readings(model: nn.Module, windows: torch.Tensor, events: Events) -> list[ReadWindow]:
    """The same, whole and by position."""
    found = []
    device = next(model.parameters()).device
    with events.progress(f"perplexity over {windows.numel():,} tokens", len(windows)) as advance:
        for window in windows.to(device):
            found.append(reading(model(input_ids=window[None], use_cache=False).logits[0, :-1], window[1:]))
            advance(1)
    return found


@torch.inference_mode()
def paged_readings(model: nn.Module, family: Family, windows: torch.Tensor, events: Events) -> list[ReadWindow]:
    """``window_readings`` with all windows in one block before any enters the next, so that each block is read once."""
    states, arguments = enter(model, family, windows.split(1))
    blocks, found = blocks_of(model, family), []
    with events.progress(f"perplexity over {windows.numel():,} tokens, block by block", len(blocks)) as advance:
        for number, block in enumerate(blocks):
            states = through_all(block, states, [own[number] for own in arguments])
            advance(1)
    for window, state in zip(windows.to(states[0].device), states, strict=True):
        found.append(reading(logits_from(model, family, window[None], state)[0, :-1], window[1:]))
    return found


def perplexity_record(losses: list[float]) -> dict[str, Any]:
    """exp(mean loss) with a standard error by the delta method over windows.

    Raises:
        TrimlineError: a loss is no number, or so large that its exponential is none.
    """
    tensor = torch.tensor(losses, dtype=torch.float64)
    if not tensor.mean() < LARGEST_LOSS:
        raise TrimlineError(
            f"The model predicts nothing: its loss is {tensor.mean():.3g} nats per token.", "Remove less, or repair the checkpoint."
        )
    perplexity = math.exp(tensor.mean().item())
    error = perplexity * tensor.std().item() / math.sqrt(len(losses)) if len(losses) > 1 else None
    return {"perplexity": perplexity, "standard_error": error, "window_losses": losses}
