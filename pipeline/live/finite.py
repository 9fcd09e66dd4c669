"""Numbers that are not finite: refused where they arise, and said what they come from.

Whatever walks over a model asks here, so that no method has to: what a sweep hands out is finite.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.common.errors import TrimlineError


def demand_finite(tensors: Iterable[torch.Tensor], what: str, model: nn.Module) -> None:
    """Refuses NaN and Inf.

    Args:
        tensors: of any shape.
        what: they are, in the plural: "The gradients of block 3".
        model: that they were measured on; looked through only where something is wrong.

    Raises:
        TrimlineError: one is not finite. Names the tensor of the model that is not, or else what overflows.
    """
    if not all(is_finite(tensor) for tensor in tensors):
        raise _cause(what, model)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor Inf."""
    return bool(torch.isfinite(tensor).all())


def kind_of(tensor: torch.Tensor) -> str:
    """What a tensor that is not finite holds."""
    return "NaN" if torch.isnan(tensor).any() else "Inf"


def _cause(what: str, model: nn.Module) -> TrimlineError:
    """Blocks that are not in memory have no values, and cannot be the cause: they did not run."""
    dtype = next(model.parameters()).dtype
    name, narrow = str(dtype).removeprefix("torch."), torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max
    there = ((name, tensor) for name, tensor in model.named_parameters() if not tensor.is_meta)
    found = next(((known, kind_of(tensor)) for known, tensor in there if not is_finite(tensor)), None)
    if found is None:
        beyond = "Look for weights far larger than the others, or use options that add up in float32, where the method has them."
        remedy = "Measure in float32: --dtype float32." if narrow else beyond
        return TrimlineError(f"{what} are not finite: activations or gradients overflow in {name}.", remedy)
    repair = "Fetch the checkpoint again, or repair that tensor."
    if narrow and found[1] == "Inf":
        repair = f"Measure in float32: --dtype float32, if {name} is too small for its values; otherwise repair that tensor."
    return TrimlineError(f"{what} are not finite: the tensor {found[0]} holds {found[1]} in {name}.", repair)
