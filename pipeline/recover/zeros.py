"""Weights that are exactly zero stay zero: masks of n:m and unstructured pruning outlive training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.recover.sharded import local


def projection_weights(geometry: Geometry) -> list[str]:
    """Stored names of the weights of every projection inside the blocks."""
    return [
        f"{geometry.family.module(number, linear.name)}.weight"
        for number, block in enumerate(geometry.blocks)
        for linear, _ in geometry.linears(block)
    ]


class ZeroKeeper(TrainerCallback):
    """Sets weights back to zero after every step of the optimiser: momentum and decay move them otherwise."""

    def __init__(self, weights: Mapping[str, torch.nn.Parameter]) -> None:
        """Notes where the weights are zero now."""
        places = ((name, weight, weight.detach() == 0) for name, weight in weights.items())
        self._kept = {name: (weight, zeros) for name, weight, zeros in places if zeros.any()}

    def on_train_begin(self, *_: Any, model: torch.nn.Module | None = None, **__: Any) -> None:
        """Sharding has put other parameters in the place of those that were known, with a part of the same values."""
        assert model is not None, "the Trainer tells its callbacks"
        for name, before in self._kept.items():
            held = model.get_parameter(name)
            if held is not before[0]:
                self._kept[name] = held, local(held.detach()) == 0

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Called by the Trainer once the weights have moved."""
        with torch.no_grad():
            for weight, zeros in self._kept.values():
                held = local(weight)
                held.masked_fill_(zeros.to(held.device), 0)


def demand_zeros(before: Checkpoint, after: Checkpoint) -> dict[str, int]:
    """Reads both folders; counts what was kept: tensors with zeros, zeros, tensors that are 2:4.

    Raises:
        GateError: a weight that was zero is not any more, or a tensor lost its 2:4 pattern; the tensor is named.
    """
    kept = {"tensors": 0, "zeros": 0, "two_four": 0}
    for name in projection_weights(before.geometry):
        weight, trained = before.tensor(name), after.tensor(name)
        zeros = weight == 0
        lost = int((zeros & (trained != 0)).sum())
        if lost:
            raise _lost(f"{lost} of {int(zeros.sum())} weights of {name} that were zero")
        if two_four_fraction(weight) == 1.0:
            if two_four_fraction(trained) < 1.0:
                raise _lost(f"the 2:4 pattern of {name}")
            kept["two_four"] += 1
        kept["tensors"] += bool(zeros.any())
        kept["zeros"] += int(zeros.sum())
    return kept


def _lost(what: str) -> GateError:
    return GateError(f"Training lost {what}.", "This is a fault of the recovery, not of the recipe; please report it with the recipe.")
