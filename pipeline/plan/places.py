"""Where a stored tensor stands in a family's description. Surgery and masking walk checkpoints through this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pipeline.architecture.families import Axis, Carried, Family, Norm, Part
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection


@dataclass(frozen=True)
class Place:
    """A tensor inside a block.

    Attributes:
        block: number of its block in the checkpoint.
        part: the projection or norm it belongs to, or what it is itself.
        kind: ``weight`` or ``bias``; empty of what is carried.
    """

    block: int
    part: Part
    kind: str

    def stays(self, selection: Selection, geometry: Geometry) -> bool:
        """Whether its block and its sublayer, or its experts, are both kept."""
        return self.block in selection.blocks and selection.shape(self.block, geometry).holds(self.part)

    @property
    def of_experts(self) -> bool:
        """Whether it has an index per routed expert."""
        return isinstance(self.part, Carried) and self.part.of_experts

    def name(self, family: Family, block: int) -> str:
        """Its stored name in block ``block``."""
        module = family.module(block, self.part.name)
        return f"{module}.{self.kind}" if self.kind else module

    def indices(self, selection: Selection, geometry: Geometry) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Kept indices along dimension 0 and along dimension 1; None where all stay."""
        if isinstance(self.part, Carried):
            rows, columns = (*(selection.kept(size, self.block, geometry) for size in self.part.shape[:2]), None, None)[:2]
            return rows, columns
        if isinstance(self.part, Norm):
            if self.part.axis is Axis.RESIDUAL:
                return selection.stream, None
            return (None if self.part.axis is Axis.HEAD else selection.axis_indices(self.part.axis, self.block, geometry)), None
        rows = selection.row_indices(self.part, self.block, geometry)
        columns = selection.column_indices(self.part, self.block, geometry) if self.kind == "weight" else None
        return rows, columns


def indices_of(name: str, place: Place | None, selection: Selection, geometry: Geometry) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Kept indices along dimension 0 and along dimension 1 of any tensor; None where all stay."""
    if place is not None:
        return place.indices(selection, geometry)
    is_norm = name.rpartition(".")[0] in geometry.family.final_norms
    return (selection.stream, None) if is_norm else (None, selection.stream)  # the others are tables: token, position, head


def over_stream(name: str, place: Place | None, family: Family) -> bool:
    """Whether it is the weight of a norm over the residual stream, block's or final."""
    if place is None:
        return name in {f"{norm}.weight" for norm in family.final_norms}
    return isinstance(place.part, Norm) and place.part.axis is Axis.RESIDUAL and place.kind == "weight"


def placed_tensors(checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[str, Place | None]]:
    """Every tensor that a model consists of, in name order; None stands for "outside the blocks".

    Raises:
        TrimlineError: the plan is for another model, or a block holds a tensor that the family does not describe.
    """
    check_same_model(checkpoint, plan)
    family = plan.family
    for name in sorted({*checkpoint.locations, *added_biases(checkpoint, plan)}):
        yield name, place_of(family, name)


def added_biases(checkpoint: Checkpoint, plan: Plan) -> set[str]:
    """Names of the tensors that the plan adds: biases, in every block that has their projection."""
    blocks = range(len(checkpoint.geometry.blocks))
    modules = (plan.family.module(block, linear) for block in blocks for linear in plan.biases)
    return {f"{module}.bias" for module in modules if f"{module}.weight" in checkpoint.locations} - set(checkpoint.locations)


def dense_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor of the dense model; zeros for a bias that only the plan gives it."""
    if name in checkpoint.locations:
        return checkpoint.tensor(name)
    weight = checkpoint.tensor(name.removesuffix("bias") + "weight")
    return weight.new_zeros(len(weight))


def check_same_model(checkpoint: Checkpoint, plan: Plan) -> None:
    """Refuses a plan that was made for another model.

    Raises:
        TrimlineError: family or number of blocks differ, the plan keeps units that are not there, or it updates a
            tensor that neither the checkpoint holds nor the plan adds.
    """
    geometry, selection = checkpoint.geometry, plan.selection
    remedy = "Prune this checkpoint again, or give the one the plan was made for."
    if plan.family is not geometry.family:
        raise TrimlineError(f"The plan is for {plan.family.model_type}, and {checkpoint.folder} is {geometry.family.model_type}.", remedy)
    if len(selection.ffn) != len(geometry.blocks) or len(selection.kv_groups) != len(geometry.blocks):
        raise TrimlineError(f"The plan is for {len(selection.ffn)} blocks, and {checkpoint.folder} has {len(geometry.blocks)}.", remedy)
    if (selection.experts is None) is not (geometry.family.mixture is None):
        raise TrimlineError(f"The plan does not say which experts of {checkpoint.folder} stay.", remedy)
    for number, block in enumerate(geometry.blocks):
        both = (selection.ffn[number], block.ffn), (selection.kv_groups[number], block.kv_groups)
        for units, size in (*both, (selection.experts_of(number), block.experts)):
            if units and units[-1] >= size:
                raise TrimlineError(f"The plan keeps unit {units[-1]} of block {number}, which has {size}.", remedy)
    if selection.residual is not None and not selection.residual[-1:] < (geometry.hidden,):
        raise TrimlineError(f"The plan keeps channel {selection.residual[-1]} of a residual stream of {geometry.hidden}.", remedy)
    foreign = sorted(set(plan.biases) - {linear.name for linear in plan.family.linears})
    if foreign:
        raise TrimlineError(f"The plan gives {foreign[0]} a bias, and {plan.family.model_type} has no such projection.", remedy)
    unknown = sorted(set(plan.updates) - set(checkpoint.locations) - added_biases(checkpoint, plan))
    if unknown:
        raise TrimlineError(f"The plan updates {unknown[0]}, which {checkpoint.folder} does not hold.", remedy)


def place_of(family: Family, name: str) -> Place | None:
    """Where a stored tensor stands; None outside the blocks.

    Raises:
        TrimlineError: a block holds it, and the family does not describe it.
    """
    prefix = family.blocks + "."
    if not name.startswith(prefix):
        return None
    number, _, rest = name.removeprefix(prefix).partition(".")
    module, _, kind = rest.rpartition(".")
    parts: tuple[Part, ...] = (*family.linears, *family.norms)
    found = next((Place(-1, part, kind) for part in parts if part.name == module and kind in ("weight", "bias")), None)
    found = found or next((Place(-1, part, "") for part in family.carried if part.name == rest), None)
    if found and number.isdigit():
        return replace(found, block=int(number))
    raise TrimlineError(
        f"The tensor {name} has no place in the description of {family.model_type}.",
        "It would be lost without notice; describe it in the family's file (docs/add-an-architecture.md), or remove it.",
    )
