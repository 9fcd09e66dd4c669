"""The reference of the rebuild gate: the dense model, loaded by transformers, with the plan applied as zeros and updates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.architecture.families import Axis, Carried, Linear
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.wrappers import name_in_whole, text_name
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.live.routing import forbid
from pipeline.live.untouched import change_parameters, load_untouched
from pipeline.plan.places import Place, added_biases, check_same_model, dense_tensor, indices_of, over_stream, place_of
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection, select
from pipeline.rebuild.surgery import norm_scale


class PlanMask:
    """A plan as a change of the dense model's parameters: they compute then what the smaller model must compute.

    Rows and columns of removed units become zero, updates stand where their units stood. A sublayer or block that goes
    has its last projection and that projection's bias zeroed, so that it adds nothing to the residual stream. Tensors of routed
    experts stay, those of removed ones too: that these cannot be chosen is no matter of weights (``pipeline.live.routing``). Norms
    over that stream are what the smaller model's rounded ones are worth among the zeros (``norm_scale``).

    Args:
        plan: with the biases that its profile needs (``for_profile``).
        geometry: the dense model's sizes.
        stored: a parameter's name to the dtype that its tensor is stored in, to which the smaller model rounds what is new.
    """

    def __init__(self, plan: Plan, geometry: Geometry, stored: Callable[[str], torch.dtype]) -> None:
        self._plan, self._geometry, self._stored = plan, geometry, stored

    def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A parameter's masked value.

        Raises:
            TrimlineError: the family does not describe it, or an update does not fit it.
        """
        plan, place = self._plan, place_of(self._plan.family, name)
        if place is not None and not place.stays(plan.selection, self._geometry):
            return torch.zeros_like(value) if _adds_to_residual(place) else value
        kept_indices = indices_of(name, place, plan.selection, self._geometry)
        rows, columns = (None if indices is None else indices.to(value.device) for indices in kept_indices)
        if place is not None and place.of_experts:
            return self._among_experts(name, value, rows, columns)
        kept = self._rounded(name, place, self._updated(name, select(value, rows, columns)))
        return kept if kept.shape == value.shape else _scatter(value, rows, columns, kept)

    def _among_experts(self, name: str, value: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None) -> torch.Tensor:
        """The dense tensor with updates for experts that stay."""
        if name not in self._plan.updates:
            return value
        changed, kept = value.clone(), self._updated(name, select(value, rows, columns))
        if columns is None:
            changed[slice(None) if rows is None else rows] = kept
        else:
            changed[:, columns] = kept
        return changed

    def _updated(self, name: str, kept: torch.Tensor) -> torch.Tensor:
        update = self._plan.updates.get(name)
        if update is None:
            return kept
        if update.shape != kept.shape:
            raise TrimlineError(
                f"The plan's update of {name} has shape {tuple(update.shape)}, and {tuple(kept.shape)} of it stay.",
                "Prune again with this version.",
            )
        return update.to(self._stored(name)).to(kept)

    def _rounded(self, name: str, place: Place | None, kept: torch.Tensor) -> torch.Tensor:
        if self._plan.selection.residual is None or not over_stream(name, place, self._plan.family):
            return kept
        scale = norm_scale(self._plan.selection, self._geometry)
        return (kept.float() * scale).to(self._stored(name)).to(kept) / scale


def open_masked(checkpoint: Checkpoint, plan: Plan, options: RunOptions, dtype: torch.dtype) -> PreTrainedModel:
    """The dense model as transformers loads it, whole or with its blocks on disk, with the plan applied.

    Raises:
        TrimlineError: as ``load_model``, or the plan does not fit.
    """
    check_same_model(checkpoint, plan)
    model, report = load_untouched(checkpoint.folder, options, dtype)
    if report.missing:
        raise TrimlineError(
            f"{checkpoint.folder} lacks {len(report.missing)} tensors of its model, first {report.missing[0]}.",
            "Fetch the checkpoint again.",
        )
    apply_plan(model, checkpoint, plan, whole=checkpoint.nested is not None)
    return model


def apply_plan(model: nn.Module, checkpoint: Checkpoint, plan: Plan, whole: bool = False) -> None:
    """Changes the parameters of the dense ``model`` as the plan says, and adds the plan's biases; of ``checkpoint`` no value is read.

    Args:
        model: a language model, or the ``whole`` that holds it, of which all else stays.
        checkpoint: its folder.
        plan: with the biases that its profile needs.
        whole: which of the two.
    """
    mask = PlanMask(plan, checkpoint.geometry, lambda name: dense_tensor(checkpoint, name).dtype)
    added = sorted(added_biases(checkpoint, plan))

    def inside(name: str, value: torch.Tensor) -> torch.Tensor:
        own = text_name(name)
        return value if own is None else mask(own, value)

    change_parameters(model, inside if whole else mask, [name_in_whole(name) for name in added] if whole else added)
    if plan.family.mixture is not None:
        forbid(model, plan.family, removed_experts(plan.selection, checkpoint.geometry))


def removed_experts(selection: Selection, geometry: Geometry) -> dict[int, tuple[int, ...]]:
    """Numbers of the routed experts that go, by original block."""
    return {
        number: tuple(sorted(set(range(block.experts)) - set(selection.experts_of(number))))
        for number, block in enumerate(geometry.blocks)
        if block.experts and number in selection.blocks
    }


def _scatter(dense: torch.Tensor, rows: torch.Tensor | None, columns: torch.Tensor | None, kept: torch.Tensor) -> torch.Tensor:
    masked = torch.zeros_like(dense)
    rows = torch.arange(dense.shape[0], device=dense.device) if rows is None else rows
    if dense.dim() == 1:
        masked[rows] = kept
    else:
        masked[rows[:, None], torch.arange(dense.shape[1], device=dense.device) if columns is None else columns] = kept
    return masked


def _adds_to_residual(place: Place) -> bool:
    """Whether it writes into the stream itself: the last projection of a sublayer, and its bias."""
    if isinstance(place.part, Carried):
        return place.part.adds
    return isinstance(place.part, Linear) and place.part.rows == (Axis.RESIDUAL,)
