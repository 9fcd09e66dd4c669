"""Cutting: all tensors of the smaller model, under their new names."""

from __future__ import annotations

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.errors import TrimlineError
from pipeline.plan import Plan
from pipeline.rebuild.places import dense_tensor, placed_tensors


def cut(checkpoint: Checkpoint, plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors of the model that keeps the plan's selection, in the checkpoint's dtype.

    Kept blocks are renumbered; an absent sublayer loses its projections and its norms; the plan's updates stand in
    for the tensors they were computed for. A tied head is left out: the loader ties it again.

    Raises:
        TrimlineError: the plan does not fit the checkpoint (see ``placed_tensors``), or an update has another shape
            than the tensor it replaces has after cutting.
    """
    numbers = {block: number for number, block in enumerate(plan.selection.blocks)}
    smaller: dict[str, torch.Tensor] = {}
    for name, place in placed_tensors(checkpoint, plan):
        if place is None:
            smaller[name] = _finished(name, plan, dense_tensor(checkpoint, name))
        elif place.stays(plan.selection):
            rows, columns = place.indices(plan.selection, checkpoint.geometry)
            tensor = select(dense_tensor(checkpoint, name), rows, columns)
            smaller[place.name(plan.family, numbers[place.block])] = _finished(name, plan, tensor)
    return smaller


def select(tensor: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None) -> torch.Tensor:
    """The kept rows and columns, contiguous; None keeps a whole dimension."""
    if rows is not None:
        tensor = tensor.index_select(0, rows)
    if columns is not None:
        tensor = tensor.index_select(1, columns)
    return tensor.contiguous()


def _finished(name: str, plan: Plan, tensor: torch.Tensor) -> torch.Tensor:
    update = plan.updates.get(name)
    if update is None:
        return tensor
    if update.shape != tensor.shape:
        raise TrimlineError(
            f"The plan's update of {name} has shape {tuple(update.shape)}, and the tensor is {tuple(tensor.shape)} after cutting.",
            "Prune again with this version.",
        )
    return update.to(tensor.dtype)
