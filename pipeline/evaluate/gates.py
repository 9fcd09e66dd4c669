"""Gates: checks between two forms of the same model. A gate that fails names the first place that differs.

Which tokens and positions a gate reads is decided here for all of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from pipeline.common.errors import GateError

REPORT = "This is a fault of the conversion, not of the recipe; please report it with the recipe."
RELATIVE_BAR = 1e-5
ABSOLUTE_FLOOR = 1e-4
BEYOND_WINDOW = 8  # tokens of a row that go past a sliding window
LONGEST_ROW = 8192 + BEYOND_WINDOW  # a longer row costs more than a gate should


@dataclass(frozen=True)
class LogitDifference:
    """How far two sets of logits lie apart.

    Attributes:
        difference: largest absolute difference.
        bar: what it may be.
        kl_divergence: mean over positions of KL(reference ‖ candidate), nats.
        first_difference: (row, position, token) of the first logit beyond the bar, None where there is none.
        tokens_agreed, tokens_compared: argmax agreement, close calls counted as agreement.
    """

    difference: float
    bar: float
    kl_divergence: float
    first_difference: tuple[int, int, int] | None
    tokens_agreed: int
    tokens_compared: int

    @property
    def passed(self) -> bool:
        return self.first_difference is None and self.tokens_agreed == self.tokens_compared

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def logit_bar(reference: torch.Tensor) -> float:
    """1e-5 of the largest logit, floor 1e-4: what fp32 forms of the same model may differ by."""
    return max(ABSOLUTE_FLOOR, RELATIVE_BAR * reference.abs().max().item())


def compare_logits(reference: torch.Tensor, candidate: torch.Tensor, bar: float | None = None) -> LogitDifference:
    """Compares logits of shape (batch, positions, vocabulary), in fp32.

    Argmax must agree except where the reference's two best logits are closer than twice the bar.

    Raises:
        GateError: the shapes differ, or the candidate holds NaN.
    """
    if reference.shape != candidate.shape:
        raise GateError(f"The logits have shape {tuple(candidate.shape)} instead of {tuple(reference.shape)}.")
    reference, candidate = reference.float(), candidate.float()
    if not torch.isfinite(candidate).all():
        raise GateError("The logits of the new form hold NaN or Inf.")
    bar = logit_bar(reference) if bar is None else bar
    gap = (reference - candidate).abs()
    beyond = (gap > bar).nonzero()
    best = reference.topk(2, dim=-1).values
    close = best[..., 0] - best[..., 1] < 2 * bar
    agreed = (reference.argmax(-1) == candidate.argmax(-1)) | close
    log_p, log_q = reference.log_softmax(-1), candidate.log_softmax(-1)
    return LogitDifference(
        difference=gap.max().item(),
        bar=bar,
        kl_divergence=(log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        first_difference=tuple(beyond[0].tolist()) if len(beyond) else None,  # type: ignore[arg-type]
        tokens_agreed=int(agreed.sum()),
        tokens_compared=agreed.numel(),
    )


def demand(comparison: LogitDifference, reference: str, candidate: str) -> None:
    """Fails the stage where the comparison failed.

    Raises:
        GateError: says which position and token differ first and by how much.
    """
    if comparison.passed:
        return
    if comparison.first_difference is not None:
        row, position, token = comparison.first_difference
        where = f"first at row {row}, position {position}, token {token}"
    else:
        where = f"{comparison.tokens_compared - comparison.tokens_agreed} of {comparison.tokens_compared} greedy tokens differ"
    raise GateError(
        f"{candidate} does not compute what {reference} computes: logits differ by {comparison.difference:.3g} "
        f"where {comparison.bar:.3g} is allowed ({where}).",
        REPORT,
    )


def gate_tokens(vocabulary: int, rows: int = 2, length: int = 48, seed: int = 0) -> torch.Tensor:
    """Token ids for a gate, shape (rows, length): spread over the whole vocabulary, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (rows, length), generator=generator)


def late_positions(promised: int, length: int = 48) -> torch.Tensor:
    """Ascending positions for a row that is far shorter than the context, shape (min(length, promised),).

    A quarter of them counts up from 0, a quarter up to the last promised one, the others are spread in between. So a short
    row reads a rotary or position table from end to end, and attends over distances at which every angle matters.
    transformers takes jumps in positions for several texts in one row, unless it is given an attention mask of ones.

    Args:
        promised: positions that the model was made for.
        length: of the row.
    """
    length = min(length, promised)
    edge = length // 4
    between = torch.linspace(edge, promised - edge - 1, length - 2 * edge, dtype=torch.float64).floor().long()
    return torch.cat((torch.arange(edge), between, torch.arange(promised - edge, promised)))


def attention_window(config: PretrainedConfig) -> int | None:
    """Tokens that a block with a sliding window attends to, as transformers' own config says; None where no block has one."""
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is None or (types is not None and not any("sliding" in kind for kind in types)):
        return None
    return int(window)


def row_past_window(window: int | None, promised: int) -> int | None:
    """Tokens of a row that shows whether a window of ``window`` tokens is kept to; None where no row that a gate can afford does.

    Args:
        window: as ``attention_window``.
        promised: positions that the model was made for; a window as long as these never shows.
    """
    if window is None or window >= promised:
        return None
    row = min(window + BEYOND_WINDOW, promised)
    return row if row <= LONGEST_ROW else None
