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
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.blocks import blocks_of, enter, standing_in
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
    """Stage: writes perplexity.json: of the first text, and of every one under ``texts``.

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
    read = {text.name: consecutive_windows(tokenizer, text.text, recipe.windows, recipe.window) for text in texts_of(texts, "evaluation")}
    check_windows(torch.cat(list(read.values())), source.geometry)
    model, paging = open_model(folder, options)
    beside = None if dense is None or paging is not None else _beside(checkpoint_folder(dense), source, options, events)
    found = []
    for name, windows in read.items():
        if beside is None:
            losses = window_losses(model, windows, events) if paging is None else paged_losses(model, paging.family, windows, events)
            more: dict[str, float] = {}
        else:
            agreements = window_agreements(model, beside, windows, events)
            losses, more = [one.loss for one in agreements], agreement_record(agreements)
        if not all(map(math.isfinite, losses)):
            source.check_finite()  # a tensor that is no number is named rather than what comes of it
        found.append({"text": name} | perplexity_record(losses) | more)
        events.note(f"perplexity {found[-1]['perplexity']:.2f} on {name}")
    how = {"window": recipe.window, "dtype": str(model.dtype).removeprefix("torch.")}
    write_json(out / RESULT, found[0] | how | {"texts": found})


def _beside(dense: Path, source: Checkpoint, options: RunOptions, events: Events) -> nn.Module | None:
    """The dense model, where memory holds it beside the one that is evaluated."""
    both = (Checkpoint(dense), source)
    if not options.holds(sum(weights_bytes(one, one.dtype) for one in both)):
        events.note("memory does not hold the dense model beside this one, so their predictions are not compared")
        return None
    return load_model(dense, dtype=both[0].dtype, device=options.device, trust_remote_code=options.trust_remote_code)


@torch.inference_mode()
def window_losses(model: nn.Module, windows: torch.Tensor, events: Events) -> list[float]:
    """Mean cross-entropy of each window, nats per predicted token; ``windows`` is (N, S), S − 1 targets each."""
    losses = []
    device = next(model.parameters()).device
    with events.progress(f"perplexity over {windows.numel():,} tokens", len(windows)) as advance:
        for window in windows.to(device):
            losses.append(_loss(model, window))
            advance(1)
    return losses


@torch.inference_mode()
def paged_losses(model: nn.Module, family: Family, windows: torch.Tensor, events: Events) -> list[float]:
    """``window_losses`` with all windows in one block before any enters the next, so that each block is read once."""
    states, arguments = enter(model, family, windows.split(1))
    blocks, losses = blocks_of(model, family), []
    with events.progress(f"perplexity over {windows.numel():,} tokens, block by block", len(blocks)) as advance:
        for number, block in enumerate(blocks):
            states = [arguments[index][number].through(block, state) for index, state in enumerate(states)]
            advance(1)
    for window, state in zip(windows.to(states[0].device), states, strict=True):
        with standing_in(blocks, lambda *_, state=state, **__: state, family):
            losses.append(_loss(model, window))
    return losses


def _loss(model: nn.Module, window: torch.Tensor) -> float:
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), window[1:]).item()


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
