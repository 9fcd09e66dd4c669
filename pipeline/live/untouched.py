"""A checkpoint as transformers itself reads it, whatever its size, a larger model whole: what gates compare with.

No tensor passes through this project's own reader. A model beyond the memory stays in its files by transformers' own offload to
disk: accelerate's hooks read the tensors of a projection when it is called, and let go of them after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn
from transformers import PreTrainedModel

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import RunOptions
from pipeline.live.blocks import blocks_path
from pipeline.live.loading import LoadReport, load_with_report
from pipeline.live.paging import weights_bytes
from pipeline.live.placing import devices_for, empty_model

Change = Callable[[str, torch.Tensor], torch.Tensor]


def load_untouched(folder: Path, options: RunOptions, dtype: torch.dtype, whole: bool = True) -> tuple[PreTrainedModel, LoadReport]:
    """A folder by transformers' loader, in evaluation mode: whole where memory holds it, else with its blocks left in their files.

    Args:
        folder: a checkpoint folder.
        options: device, memory, trust.
        dtype: of the weights, however they are stored.
        whole: of a larger model's folder all of it, or else its language model alone.

    Returns:
        The model; names that its class has and the folder has not, and the other way round.

    Raises:
        TrimlineError: as ``load_model``, but for missing tensors.
    """
    checkpoint = Checkpoint(folder)
    device: str | dict[str, int] | dict[str, str] = options.device
    if not options.holds(weights_bytes(checkpoint, dtype, whole)):
        device = devices_for(folder, options, dtype, whole) or _blocks_on_disk(folder, options, dtype, whole)
    with _quiet_accelerate():
        return load_with_report(folder, dtype=dtype, device=device, trust_remote_code=options.trust_remote_code, whole=whole)


def change_parameters(model: nn.Module, change: Change, added: Collection[str] = ()) -> None:
    """Changes the parameters of a loaded model: at once where they are in memory, whenever they are read where they are on disk.

    Args:
        model: as ``load_untouched`` gives it.
        change: a parameter's name and value to its new value, of the same shape and dtype; must not write into what it is given.
        added: names of biases that the model has not; ``change`` is given zeros for them.
    """
    for name in added:
        linear = model.get_submodule(name.removesuffix(".bias"))
        assert isinstance(linear, nn.Linear)
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features), requires_grad=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.device.type != "meta":
                parameter.copy_(change(name, parameter))
    for path, hook in _reading_hooks(model):
        hook.weights_map = _ChangedWeights(hook.weights_map, f"{path}.", change, added)


def parameter_of(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a module of such a model, by its name in the module: from its file where it is not in memory."""
    parameter: torch.Tensor = module.get_parameter(name)
    if parameter.device.type != "meta":
        return parameter.detach()
    found: torch.Tensor = next(hook.weights_map for path, hook in _reading_hooks(module) if not path)[name]
    return found


@contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """Without its warning that tensors are on disk, which is what was asked for."""
    logger = logging.getLogger("accelerate.big_modeling")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _blocks_on_disk(folder: Path, options: RunOptions, dtype: torch.dtype, whole: bool) -> dict[str, str]:
    """Where each part of the model goes: the decoder blocks stay in their files, all that stands beside them is in memory."""
    above, places = "", dict[str, str]()
    model = empty_model(folder, options, dtype, whole)
    *path, blocks = blocks_path(model, Checkpoint(folder).geometry.family).split(".")
    for step in (*path, blocks):
        beside = (name for name, _ in model.get_submodule(above).named_children() if name != step)
        places |= {f"{above}.{name}".lstrip("."): options.device for name in beside}
        above = f"{above}.{step}".lstrip(".")
    return places | {above: "disk"}


def _reading_hooks(model: nn.Module) -> Iterator[tuple[str, AlignDevicesHook]]:
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
            if isinstance(one, AlignDevicesHook) and one.offload:
                yield path, one


class _ChangedWeights(Mapping[str, torch.Tensor]):
    """What a hook reads of a module's parameters, changed on the way."""

    def __init__(self, read: Mapping[str, torch.Tensor], prefix: str, change: Change, added: Collection[str]) -> None:
        self._read, self._prefix, self._change, self._added = read, prefix, change, added

    def __getitem__(self, name: str) -> torch.Tensor:
        full = self._prefix + name
        if full in self._added:
            weight = self._read[name.removesuffix("bias") + "weight"]
            return self._change(full, weight.new_zeros(len(weight)))
        return self._change(full, self._read[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)
