"""Cutting: all tensors of the smaller model, under their new names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.plan.places import Place, dense_tensor, indices_of, over_stream, placed_tensors
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection, select


class Cut(Mapping[str, torch.Tensor]):
    """The tensors of the model that keeps the plan's selection, in the checkpoint's dtype, each made when it is asked for.

    Kept blocks are renumbered; an absent sublayer loses its projections and its norms; the plan's updates stand in
    for the tensors they were computed for. A tied head is left out: the loader ties it again.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        """Raises TrimlineError where the plan does not fit the checkpoint (see ``placed_tensors``)."""
        self._checkpoint, self._plan = checkpoint, plan
        numbers = {block: number for number, block in enumerate(plan.selection.blocks)}
        self._origins = {
            name if place is None else place.name(plan.family, numbers[place.block]): (name, place)
            for name, place in placed_tensors(checkpoint, plan)
            if place is None or place.stays(plan.selection, checkpoint.geometry)
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        """Raises TrimlineError where it holds NaN or Inf, or an update has another shape than the tensor it replaces has after cutting."""
        origin, place = self._origins[name]
        tensor = finished(origin, place, self._checkpoint, self._plan)
        if origin in self._plan.updates and not torch.isfinite(tensor).all():
            raise TrimlineError(f"The plan's update of {origin} holds NaN or Inf.", "Prune again.")
        self._checkpoint.demand_finite(origin, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


def finished(name: str, place: Place | None, checkpoint: Checkpoint, plan: Plan) -> torch.Tensor:
    """A tensor that stays as the smaller model holds it, in the checkpoint's dtype: cut, updated, norms rescaled.

    Raises:
        TrimlineError: an update has another shape than the tensor it replaces has after cutting.
    """
    rows, columns = indices_of(name, place, plan.selection, checkpoint.geometry)
    tensor = _updated(name, plan, select(dense_tensor(checkpoint, name), rows, columns))
    if plan.selection.residual is None or not over_stream(name, place, plan.family):
        return tensor
    return (tensor.float() * norm_scale(plan.selection, checkpoint.geometry)).to(tensor.dtype)


def norm_scale(selection: Selection, geometry: Geometry) -> float:
    """√(all / kept) of the residual stream's channels, by which norms over it grow.

    RMSNorm gives w x / √(mean x² + ε). With zeros in the channels that go, the mean over all n channels is k/n of the
    mean over the k that stay, and w x / √(k/n mean + ε) = √(n/k) w x / √(mean + n/k ε): the weight grows by √(n/k) and ε
    by n/k.
    """
    return 1.0 if selection.residual is None else math.sqrt(geometry.hidden / len(selection.residual))


def _updated(name: str, plan: Plan, tensor: torch.Tensor) -> torch.Tensor:
    update = plan.updates.get(name)
    if update is None:
        return tensor
    if update.shape != tensor.shape:
        raise TrimlineError(
            f"The plan's update of {name} has shape {tuple(update.shape)}, and the tensor is {tuple(tensor.shape)} after cutting.",
            "Prune again with this version.",
        )
    return update.to(tensor.dtype)
