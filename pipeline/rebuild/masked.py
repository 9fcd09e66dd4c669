"""The reference of the rebuild gate: the dense model with the plan applied as zeros and updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel

from pipeline.architecture.families import Axis, Linear
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.live.paging import Paging, open_model
from pipeline.plan.places import Place, dense_tensor, indices_of, over_stream, placed_tensors
from pipeline.plan.plan import Plan
from pipeline.rebuild.surgery import finished, norm_scale

Wanted = Callable[[Place | None], bool]  # of a tensor's place; None is outside the blocks


def masked_tensors(checkpoint: Checkpoint, plan: Plan, wanted: Wanted = lambda place: True) -> Iterator[tuple[str, torch.Tensor]]:
    """Dense-shaped tensors that compute what the smaller model must compute, one at a time, of the places that are wanted.

    They are in the checkpoint's dtype, but for norms.

    Rows and columns of removed units are zero, updates stand where their units stood. A sublayer or block that goes
    has its last projection and that projection's bias zeroed, so that it adds nothing to the residual stream. Norms
    over that stream are in fp32, as the smaller model's rounded ones are worth among the zeros (``norm_scale``).

    Raises:
        TrimlineError: the plan does not fit the checkpoint.
    """
    for name, place in placed_tensors(checkpoint, plan):
        if not wanted(place):
            continue
        dense = dense_tensor(checkpoint, name)
        if place is None or place.stays(plan.selection):
            values = finished(name, place, checkpoint, plan)
            if over_stream(name, place, plan.family):
                values = values.float() / norm_scale(plan.selection, checkpoint.geometry)
            yield name, _scatter(dense, *indices_of(name, place, plan.selection, checkpoint.geometry), values)
        else:
            yield name, torch.zeros_like(dense) if _adds_to_residual(place) else dense


def open_masked(checkpoint: Checkpoint, plan: Plan, options: RunOptions, dtype: torch.dtype) -> tuple[PreTrainedModel, Paging | None]:
    """The dense model with the plan applied as zeros and updates, whole or paged as ``open_model`` decides.

    Raises:
        TrimlineError: as ``open_model``, or the plan does not fit.
    """
    model, paging = open_model(checkpoint.folder, options, dtype)
    if paging is None:
        load_masked(model, checkpoint, plan)
    else:
        load_masked(model, checkpoint, plan, lambda place: place is None)
        paging.overlay = lambda block: load_masked(model, checkpoint, plan, lambda place: place is not None and place.block == block)
    return model, paging


def load_masked(model: torch.nn.Module, checkpoint: Checkpoint, plan: Plan, wanted: Wanted = lambda place: True) -> None:
    """Overwrites the parameters of a dense ``model`` with the masked ones, one tensor at a time, and adds the plan's biases."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in masked_tensors(checkpoint, plan, wanted):
            if name in parameters:
                parameters[name].copy_(tensor)
            else:
                module = model.get_submodule(name.removesuffix(".bias"))
                assert isinstance(module, torch.nn.Linear)
                module.bias = torch.nn.Parameter(tensor.to(module.weight))


def _scatter(dense: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(dense.shape[0]) if rows is None else rows
    masked = torch.zeros_like(dense, dtype=values.dtype)
    if dense.dim() == 1:
        masked[rows] = values
    else:
        masked[rows[:, None], torch.arange(dense.shape[1]) if columns is None else columns] = values
    return masked


def _adds_to_residual(place: Place) -> bool:
    return isinstance(place.part, Linear) and place.part.rows == (Axis.RESIDUAL,)
