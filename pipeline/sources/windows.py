"""Which tokens the statistics are measured on."""

from __future__ import annotations

import random
from typing import Any

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError, shortened
from pipeline.sources.recipe import CalibrationWindows


def draw_windows(tokenizer: Any, text: str, recipe: CalibrationWindows, asker: str = "calibration") -> torch.Tensor:
    """Windows of token ids, shape (windows, window).

    The text is tokenised once, as one string; starts are drawn as the released CFSP and FLAP code draws them
    (Python's ``random``, ``randint(0, T − S − 1)``), so that a seed means the same windows here and there. ``asker`` is whom
    an error speaks of.

    Raises:
        TrimlineError: the text is shorter than the recipe asks for, or a start or token id lies outside.
    """
    if recipe.token_ids is not None:
        return _given_tokens(recipe.token_ids, len(tokenizer))
    stream = tokenize(tokenizer, text)
    length = recipe.window
    if recipe.starts is not None:
        starts = list(recipe.starts)
        if not starts:
            raise TrimlineError("The list of calibration starts is empty.", "Name a start per window, or leave starts out.")
        outside = [start for start in starts if not 0 <= start <= len(stream) - length]
        if outside:
            raise TrimlineError(
                f"The calibration window at {outside[0]} lies outside the text, which has {len(stream)} tokens.",
                "Name starts below the number of tokens minus the window.",
            )
    else:
        need = recipe.windows * length
        if len(stream) < (length if recipe.overlap else need) + 1:
            raise TrimlineError(
                f"The {asker} asks for {recipe.windows} windows of {length} = {need:,} tokens; the text has {len(stream):,}.",
                "Ask for fewer or shorter windows, or give a longer text."
                + (" With prune.calibration.overlap: true the windows may share tokens." if asker == "calibration" else ""),
            )
        draw = random.Random(recipe.seed)
        starts = [draw.randint(0, len(stream) - length - 1) for _ in range(recipe.windows)]
    windows = torch.stack([stream[start : start + length] for start in starts])
    return begun(tokenizer, windows) if recipe.begin else windows


def consecutive_windows(tokenizer: Any, text: str, windows: int, length: int) -> torch.Tensor:
    """The first non-overlapping windows of a text, shape (windows, length): what perplexity is measured on.

    Raises:
        TrimlineError: the text is shorter than that.
    """
    stream = tokenize(tokenizer, text)
    if len(stream) < windows * length:
        raise TrimlineError(
            f"The evaluation asks for {windows} windows of {length} = {windows * length:,} tokens; the text has {len(stream):,}.",
            "Ask for fewer or shorter windows, or give a longer text.",
        )
    return begun(tokenizer, stream[: windows * length].view(windows, length))


def begun(tokenizer: Any, windows: torch.Tensor) -> torch.Tensor:
    """The windows (N, S), each with what the tokenizer puts before a text in place of as many of its tokens.

    A model that never saw a text without its start token computes little of use on one: Gemma 3 270M has four times the perplexity.
    """
    plain, whole = (tokenizer("a", verbose=False, add_special_tokens=special)["input_ids"] for special in (False, True))
    before = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    if not 0 < before < windows.shape[1]:
        return windows
    return torch.cat((torch.tensor(whole[:before]).expand(len(windows), before), windows[:, before:]), dim=1)


def tokenize(tokenizer: Any, text: str) -> torch.Tensor:
    """Token ids of the whole text, shape (tokens,), without the tokenizer's warning about long inputs.

    Raises:
        TrimlineError: the tokenizer fails on the text.
    """
    try:
        return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises bare ones
        why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise TrimlineError(f"The tokenizer cannot split the text ({why}).", "Fetch the tokenizer again.") from error


def _given_tokens(rows: tuple[tuple[int, ...], ...], vocabulary: int) -> torch.Tensor:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise TrimlineError("The token_ids of the calibration are empty or of different lengths.", "Give windows of one length.")
    outside = [number for row in rows for number in row if not 0 <= number < vocabulary]
    if outside:
        raise TrimlineError(
            f"The calibration token id {outside[0]} lies outside 0 to {vocabulary - 1}.", "Use the ids of this model's own tokenizer."
        )
    return torch.tensor(rows, dtype=torch.long)


def check_windows(windows: torch.Tensor, geometry: Geometry) -> None:
    """Whether a model can read the windows (N, S) at all.

    Raises:
        TrimlineError: the tokenizer makes an id that the token table lacks, or a window is longer than what the model was made to read.
    """
    if windows.max() >= geometry.vocab:
        raise TrimlineError(
            f"The tokenizer makes the token id {int(windows.max())}, and the model's token table has {geometry.vocab} rows.",
            "Its tokenizer belongs to another model.",
        )
    if geometry.context:
        kind = "learned positions" if geometry.positions else "positions"
        check_length(windows, geometry.context, f"model's {geometry.context:,} {kind} (max_position_embeddings)")


def check_length(windows: torch.Tensor, most: int, of_what: str) -> None:
    """Whether windows (N, S) are no longer than ``most`` tokens; ``of_what`` says in a sentence what has no more.

    Raises:
        TrimlineError: they are.
    """
    if windows.shape[1] > most:
        raise TrimlineError(f"A window of {windows.shape[1]:,} tokens is longer than the {of_what}.", f"Set window to at most {most}.")
