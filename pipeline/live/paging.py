"""A model whose decoder blocks are in memory one at a time, for models that do not fit.

The modules are transformers' own and keep their places, so that sweeps call blocks as they always do; only the tensors of
a block come from the checkpoint when it is called, and go when another one is. What stays is what is no block: embeddings,
last norm, head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.architecture.families import Family
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.live.loading import MISFIT, load_model
from pipeline.live.placing import devices_for, empty_model

Overlay = Callable[[int], None]
Keep = Callable[[torch.Tensor], torch.Tensor]


class Paging:
    """Which block of a model is in memory.

    Attributes:
        overlay: told of a block's number after its tensors were read, so that it can change them.
        demands_finite: whether a tensor that holds NaN or Inf is refused when it is read for the first time.
    """

    def __init__(self, model: PreTrainedModel, folder: Path, family: Family, options: RunOptions, dtype: torch.dtype) -> None:
        self.folder, self.family, self.options, self.dtype = folder, family, options, dtype
        self.overlay: Overlay = lambda block: None
        self.demands_finite = False
        self._looked_at: set[int] = set()
        self._blocks = model.get_submodule(family.blocks)
        self._resident: int | None = None
        self._stored = {name for name, _ in self._blocks.named_parameters()}
        for number, block in enumerate(self._blocks.children()):
            block.forward = self._paged(number, block.forward)

    def holds(self, block: int) -> bool:
        """Whether a block is in memory."""
        return self._resident == block

    def enter(self, block: int) -> None:
        """Reads a block, letting go of the one that was in memory.

        Raises:
            TrimlineError: the checkpoint lacks one of its tensors, or has it in another shape.
        """
        if self.holds(block):
            return
        self.leave()
        # A sweep may run in inference mode, and the block may serve one with gradients next.
        with torch.inference_mode(False), torch.no_grad():
            module = self._blocks.get_submodule(str(block))
            checkpoint, prefix = Checkpoint(self.folder), f"{self.family.blocks}.{block}."
            fill(module, checkpoint, prefix, self.dtype, self.options.device)
            if self.demands_finite and block not in self._looked_at:
                for name, parameter in module.named_parameters():
                    checkpoint.demand_finite(prefix + name, parameter)
                self._looked_at.add(block)
            self._resident = block
            self.overlay(block)

    def leave(self) -> None:
        """Lets go of what is in memory."""
        if self._resident is None:
            return
        block = self._blocks.get_submodule(str(self._resident))
        for name, parameter in list(block.named_parameters()):
            # Pruning may have given it a bias that the checkpoint does not have.
            stored = f"{self._resident}.{name}" in self._stored
            _put(block, name, _without_values(parameter) if stored else None)
        self._resident = None

    def close(self) -> None:
        """Lets go of the model: it and its blocks name each other."""
        self.leave()
        for block in self._blocks.children():
            del block.forward

    @contextmanager
    def also(self, overlay: Overlay) -> Iterator[None]:
        """For as long as it lasts, a block that is read is changed by ``overlay`` too."""
        before = self.overlay

        def both(block: int) -> None:
            before(block)
            overlay(block)

        self.leave()
        self.overlay = both
        try:
            yield
        finally:
            self.overlay = before
            self.leave()

    def again(self) -> tuple[PreTrainedModel, Paging]:
        """The same checkpoint once more."""
        return open_paged(self.folder, self.options, self.dtype)

    def _paged(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.enter(number)
            return forward(*arguments, **named)

        return call


def open_paged(folder: Path, options: RunOptions, dtype: torch.dtype) -> tuple[PreTrainedModel, Paging]:
    """A checkpoint folder as a model in evaluation mode, without its blocks' tensors, and what fetches them.

    Raises:
        TrimlineError: as ``load_model``.
    """
    family = Checkpoint(folder).geometry.family
    model = _opened(folder, options, dtype, skip=f"{family.blocks}.")
    return model, Paging(model, folder, family, options, dtype)


def open_mapped(folder: Path, options: RunOptions, dtype: torch.dtype, keep: Keep) -> PreTrainedModel:
    """A checkpoint folder as a whole model in evaluation mode whose tensors are the mapped files.

    Args:
        folder, options, dtype: as for ``open_paged``.
        keep: gets each tensor that the files hold in another dtype, and gives back the same values out of memory.

    Raises:
        TrimlineError: as ``load_model``.
    """
    return _opened(folder, options, dtype, keep=keep)


def _opened(folder: Path, options: RunOptions, dtype: torch.dtype, skip: str | None = None, keep: Keep | None = None) -> PreTrainedModel:
    checkpoint = Checkpoint(folder)
    model = empty_model(folder, options, dtype)  # with its head tied, which is then no parameter of its own to read
    fill(model, checkpoint, "", dtype, options.device, skip, keep)
    model.tie_weights()
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._buffers[leaf] = buffer.to(options.device)  # noqa: SLF001 - as torch's own ``to`` does
    return model.eval()


def open_model(folder: Path, options: RunOptions, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, Paging | None]:
    """A model whole in memory where it fits the budget, on several GPUs where it fits those, else paged; in its own dtype unless another is given.

    Raises:
        TrimlineError: as ``load_model``.
    """
    checkpoint = Checkpoint(folder)
    wanted = dtype or checkpoint.dtype
    if options.holds(weights_bytes(checkpoint, wanted)):
        return load_model(folder, dtype=wanted, device=options.device, trust_remote_code=options.trust_remote_code), None
    if (places := devices_for(folder, options, wanted)) is not None:
        return load_model(folder, dtype=wanted, device=places, trust_remote_code=options.trust_remote_code), None
    return open_paged(folder, options, wanted)


def weights_bytes(checkpoint: Checkpoint, dtype: torch.dtype, whole: bool = False) -> int:
    """What the weights of the language model take in that dtype, or of the ``whole`` that holds it."""
    geometry = checkpoint.geometry
    return (geometry.total_parameters() if whole else geometry.language_parameters()) * torch.empty((), dtype=dtype).element_size()


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    prefix: str,
    dtype: torch.dtype,
    device: str,
    skip: str | None = None,
    keep: Keep | None = None,
) -> None:
    """Gives a module its parameters from the checkpoint; those whose names start with ``skip`` are left out.

    What has another dtype there goes through ``keep``, if it is given.

    Raises:
        TrimlineError: one is missing, or has another shape than the config says.
    """
    for name, parameter in list(module.named_parameters()):
        if skip is not None and name.startswith(skip):
            continue
        tensor = checkpoint.tensor(prefix + name)
        if tensor.shape != parameter.shape:
            raise TrimlineError(
                f"The tensor {prefix + name} of {checkpoint.folder} has shape {tuple(tensor.shape)}, and its config says "
                f"{tuple(parameter.shape)}.",
                MISFIT,
            )
        given = tensor.to(device=device, dtype=dtype)
        if keep is not None and tensor.dtype != dtype:
            given = keep(given)
        _put(module, name, nn.Parameter(given, requires_grad=False))
    for name, buffer in list(module.named_buffers()):  # a router's correction is one; others the class makes itself
        if prefix + name in checkpoint.locations and not (skip is not None and name.startswith(skip)):
            parent, _, leaf = name.rpartition(".")
            module.get_submodule(parent)._buffers[leaf] = checkpoint.tensor(prefix + name).to(device=device, dtype=buffer.dtype)  # noqa: SLF001


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def _put(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    parent, _, leaf = name.rpartition(".")
    module.get_submodule(parent).register_parameter(leaf, parameter)
