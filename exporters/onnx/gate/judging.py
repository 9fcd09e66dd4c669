"""What a graph should have said along its paths: torch's logits where it is exact, else its own without a past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from exporters.held import Reference
from exporters.onnx.gate.divergence import BAR as BAR_OF_DIVERGENCE
from exporters.onnx.gate.divergence import Divergence, compare_distributions
from exporters.onnx.gate.far import FarRow
from exporters.onnx.gate.paths import GraphPath
from pipeline.evaluate.gates import LogitDifference, compare_logits

BAR = 1e-3
ROUNDINGS = 4  # of torch's own: two programs that round differently, each off by as much, and as much again for luck

Found = LogitDifference | Divergence


@dataclass(frozen=True)
class Judge:
    """What the graph should say.

    Attributes:
        reference: token ids (rows, tokens) to logits of all positions, read without a past.
        compare: a path's reference and candidate logits into what was found.
        name: of the reference, for messages.
    """

    reference: Callable[[torch.Tensor], torch.Tensor]
    compare: Callable[[torch.Tensor, torch.Tensor, GraphPath], Found]
    name: str


def judged(walked: Iterable[GraphPath], judge: Judge) -> dict[str, Found]:
    """What was found along each path, by its name."""
    found = {}
    for walk in walked:
        pairs = [(judge.reference(part.ids)[:, list(part.positions)], part.logits) for part in walk.parts]
        reference, candidate = (torch.cat(logits) for logits in zip(*pairs, strict=True))
        found[walk.name] = judge.compare(reference, candidate, walk)
    return found


def against_torch(reference: Reference, walked: list[GraphPath]) -> tuple[dict[str, Found], str, float | None]:
    """Walks beyond the bar are judged again, by torch's rounding on their own tokens: on others it may be far less.

    Returns:
        What was found, the reference's name, and the largest rounding where one was needed.
    """
    found = judged(walked, judge := _torch_judge(reference.model, BAR))
    failed = [walk for walk in walked if not found[walk.name].passed]
    if not failed:
        return found, judge.name, None
    roundings = _roundings(reference, failed)
    for walk in failed:
        found |= judged([walk], _torch_judge(reference.model, max(BAR, ROUNDINGS * roundings[walk.name])))
    return found, judge.name, max(roundings.values())


def against_itself(logits: Callable[[torch.Tensor], torch.Tensor], walked: list[GraphPath]) -> tuple[dict[str, Found], str]:
    """Paths against the same graph without a past."""
    judge = Judge(logits, lambda reference, candidate, _: compare_distributions(reference, candidate), "the graph without a past")
    return judged(walked, judge), judge.name


def judged_far(reference: Reference, rows: Sequence[FarRow], *, exact: bool) -> dict[str, Found]:
    """Rows that reach far, against torch. In fewer bits they may cost three times what the first row does, which is near and judged along the paths."""
    first, *others = rows
    pairs = {row.name: (row.reference(reference.model), row.logits) for row in others}
    if not exact and pairs:
        near = compare_distributions(first.reference(reference.model), first.logits)
        return {name: compare_distributions(*pair, bar=BAR_OF_DIVERGENCE + 3 * near.difference) for name, pair in pairs.items()}
    found: dict[str, Found] = {name: compare_logits(*pair, bar=BAR) for name, pair in pairs.items()}
    if failed := [row for row in others if not found[row.name].passed]:
        exactly = reference.in_double(lambda model: [row.reference(model) for row in failed])
        for row, double in zip(failed, exactly, strict=True):
            rounding = (pairs[row.name][0] - double).abs().max().item()
            found[row.name] = compare_logits(*pairs[row.name], bar=max(BAR, ROUNDINGS * rounding))
    return found


def _torch_judge(model: PreTrainedModel, bar: float) -> Judge:
    def compare(reference: torch.Tensor, candidate: torch.Tensor, walk: GraphPath) -> LogitDifference:
        found = compare_logits(reference, candidate, bar)
        if not walk.greedy:
            return found
        # What the graph said next has to be what torch would have said, or a close call for torch too.
        gap = reference.max(-1).values - reference.gather(-1, candidate.argmax(-1)[..., None])[..., 0]
        agreed = int((gap < 2 * bar).sum())
        return LogitDifference(found.difference, bar, found.kl_divergence, found.first_difference, agreed, gap.numel())

    return Judge(lambda ids: _reference(model, ids), compare, "torch, float32")


def _roundings(reference: Reference, walked: list[GraphPath]) -> dict[str, float]:
    """How far fp32 takes torch's own logits of each walk from those of fp64."""

    def logits(of: PreTrainedModel) -> list[torch.Tensor]:
        rows = ([_reference(of, part.ids)[:, list(part.positions)].flatten() for part in walk.parts] for walk in walked)
        return [torch.cat(parts) for parts in rows]

    single, exact = logits(reference.model), reference.in_double(logits)
    return {walk.name: (b - a.double()).abs().max().item() for walk, a, b in zip(walked, single, exact, strict=True)}


def _reference(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits
