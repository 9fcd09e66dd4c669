"""The reference of the rebuild gate: the dense model with the plan applied as zeros and updates."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.families import Axis, Linear
from pipeline.plan import Plan
from pipeline.rebuild.places import Place, dense_tensor, placed_tensors
from pipeline.rebuild.surgery import select


def masked_state(checkpoint: Checkpoint, plan: Plan) -> dict[str, torch.Tensor]:
    """Dense-shaped tensors that compute what the smaller model must compute, in the checkpoint's dtype."""
    return dict(masked_tensors(checkpoint, plan))


def masked_tensors(checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """The same one tensor at a time.

    Rows and columns of removed units are zero, updates stand where their units stood. A sublayer or block that goes
    has its last projection and that projection's bias zeroed, so that it adds nothing to the residual stream.

    Raises:
        TrimlineError: the plan does not fit the checkpoint.
    """
    for name, place in placed_tensors(checkpoint, plan):
        dense, update = dense_tensor(checkpoint, name), plan.updates.get(name)
        if place is None:
            yield name, dense if update is None else update.to(dense.dtype)
        elif place.stays(plan.selection):
            yield name, _scatter(dense, *place.indices(plan.selection, checkpoint.geometry), update)
        else:
            yield name, torch.zeros_like(dense) if _adds_to_residual(place) else dense


def load_masked(model: torch.nn.Module, checkpoint: Checkpoint, plan: Plan) -> None:
    """Overwrites the parameters of a dense ``model`` with the masked ones, one tensor at a time, and adds the plan's biases."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in masked_tensors(checkpoint, plan):
            if name in parameters:
                parameters[name].copy_(tensor)
            else:
                module = model.get_submodule(name.removesuffix(".bias"))
                assert isinstance(module, torch.nn.Linear)
                module.bias = torch.nn.Parameter(tensor.to(module.weight))


def _scatter(dense: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None, update: torch.Tensor | None) -> torch.Tensor:
    values = (select(dense, rows, columns) if update is None else update).to(dense.dtype)
    rows = torch.arange(dense.shape[0]) if rows is None else rows
    masked = torch.zeros_like(dense)
    if dense.dim() == 1:
        masked[rows] = values
    else:
        masked[rows[:, None], torch.arange(dense.shape[1]) if columns is None else columns] = values
    return masked


def _adds_to_residual(place: Place) -> bool:
    return isinstance(place.part, Linear) and place.part.rows == (Axis.RESIDUAL,)
