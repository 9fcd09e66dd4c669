"""Windows of several texts by share: each text cut end to end, nothing read twice until all of it was read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.common.errors import TrimlineError
from pipeline.sources.recipe import CalibrationWindows
from pipeline.sources.roles import SharedText, texts_of
from pipeline.sources.windows import begun, draw_windows, tokenize


@dataclass(frozen=True)
class Packed:
    """What was drawn.

    Attributes:
        windows: every one that is read, once: token ids (D, S).
        order: which of them are read, in which order; longer than D where a text was used up.
        apart: windows that nothing else has: token ids (A, S).
    """

    windows: torch.Tensor
    order: tuple[int, ...]
    apart: torch.Tensor


def packed_windows(
    tokenizer: Any, texts: Sequence[SharedText], count: int, length: int, seed: int, asker: str, apart: int = 0, again: bool = True
) -> Packed:
    """Draws windows of ``length`` tokens by the texts' shares, of each in an order of its own, then mixes them.

    Args:
        tokenizer: each text is tokenised as one string.
        texts: with their shares.
        count: windows to read.
        length: S, tokens.
        seed: of all orders.
        asker: whom an error speaks of.
        apart: windows from the end of the texts, by share too, that are not among those that are read.
        again: whether a text that is used up is read again.

    Raises:
        TrimlineError: a text is too short.
    """
    draw = random.Random(seed)
    rows: list[torch.Tensor] = []
    held: list[torch.Tensor] = []
    order: list[int] = []
    for text, wanted, kept in zip(texts, by_share(texts, count), by_share(texts, apart), strict=True):
        stream = tokenize(tokenizer, text.text)
        cut = stream[: len(stream) // length * length].view(-1, length)
        there = len(cut) - kept
        if there < (min(wanted, 1) if again else wanted):
            raise _too_short(asker, text, texts, 1 if again else wanted, kept, length, len(stream))
        turns: list[int] = []
        while len(turns) < wanted:
            turns += draw.sample(range(there), there)
        used = sorted(set(turns[:wanted]))
        place = {number: at for at, number in enumerate(used, start=sum(map(len, rows)))}
        order += [place[number] for number in turns[:wanted]]
        rows.append(cut[used])
        held.append(cut[there:])
    draw.shuffle(order)
    return Packed(begun(tokenizer, torch.cat(rows)), tuple(order), begun(tokenizer, torch.cat(held)))


def calibration_windows(tokenizer: Any, texts: Path, recipe: CalibrationWindows) -> torch.Tensor:
    """Token ids (windows, window) of the texts that calibrate: of one as ``draw_windows`` draws them, of several by their shares.

    Raises:
        TrimlineError: a text is too short, or the recipe names places in a text where there are several.
    """
    if recipe.token_ids is not None:
        return draw_windows(tokenizer, "", recipe)
    found = texts_of(texts, "calibration")
    if len(found) == 1:
        return draw_windows(tokenizer, found[0].text, recipe)
    if recipe.starts is not None or recipe.overlap or not recipe.begin:
        raise TrimlineError(
            "Calibration windows that overlap, lack their beginning or start at given places are of one text, and there are several.",
            "Leave starts, overlap and begin out, or name one text.",
        )
    drawn = packed_windows(tokenizer, found, recipe.windows, recipe.window, recipe.seed, "calibration", again=False)
    return drawn.windows[list(drawn.order)]


def by_share(texts: Sequence[SharedText], count: int) -> tuple[int, ...]:
    """Whole numbers that add up to ``count``, by the texts' shares; what is left goes to the largest remainders, earlier texts first."""
    total = sum(text.share for text in texts)
    exact = [count * text.share / total for text in texts]
    found = [int(value) for value in exact]
    first = sorted(range(len(texts)), key=lambda at: (found[at] - exact[at], at))
    for at in first[: count - sum(found)]:
        found[at] += 1
    return tuple(found)


def _too_short(asker: str, text: SharedText, texts: Sequence[SharedText], read: int, kept: int, length: int, tokens: int) -> TrimlineError:
    whose = "the text" if len(texts) == 1 else f"the text {text.name}"
    beside = f" and {kept} held out" if kept else ""
    return TrimlineError(
        f"The {asker} asks for {read} windows of {length} tokens{beside} = {(read + kept) * length}; {whose} has {tokens}.",
        "Ask for fewer or shorter windows, or give a longer text.",
    )
