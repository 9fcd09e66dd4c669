"""A model on several GPUs: which decoder block is on which, by accelerate's device map; blocks are never split.

transformers loads every shard to its place, and accelerate's hooks carry hidden states from device to device where the whole
model is called. Sweeps call blocks one by one and bring the states themselves (``pipeline.live.blocks.brought``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import infer_auto_device_map, init_empty_weights
from transformers import AutoConfig, PreTrainedModel

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.options import WEIGHTS_SHARE, RunOptions
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import as_trimline_error, auto_class, language_class_config, quiet_transformers, trusts

Map = dict[str, int]


def empty_model(folder: Path, options: RunOptions, dtype: torch.dtype, whole: bool = False) -> PreTrainedModel:
    """The folder's model with buffers and without tensors; of a larger model's folder the language model alone, or the ``whole``.

    Raises:
        TrimlineError: as ``load_model``, of its config.
    """
    checkpoint = Checkpoint(folder)
    trust = trusts(folder, checkpoint.stated, options.trust_remote_code)
    with quiet_transformers(), as_trimline_error(folder), init_empty_weights(include_buffers=False):
        opened = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        config = language_class_config(checkpoint) if checkpoint.nested and not whole else opened
        config.tie_word_embeddings = checkpoint.geometry.tied
        model: PreTrainedModel = auto_class(checkpoint, whole).from_config(config, dtype=dtype, trust_remote_code=trust)
    model.tie_weights()
    return model


def devices_for(folder: Path, options: RunOptions, dtype: torch.dtype, whole: bool = False) -> Map | None:
    """Where each part of a model goes that one GPU does not hold; None where several do not either, or are not to be used.

    With ``--memory`` the user has said how much, and the model is in memory one block at a time.
    """
    if options.device != "cuda" or options.memory is not None or torch.cuda.device_count() < 2:
        return None
    room = {number: int(WEIGHTS_SHARE * torch.cuda.mem_get_info(number)[1]) for number in range(torch.cuda.device_count())}
    return device_map(folder, options, dtype, room, whole)


def device_map(folder: Path, options: RunOptions, dtype: torch.dtype, room: Mapping[int, int], whole: bool = False) -> Map | None:
    """Part of the model to number of the GPU, in the order of the model; None where they do not hold it.

    Args:
        folder, options, dtype: as of ``open_model``.
        room: bytes of weights that each GPU may hold.
        whole: as of ``empty_model``.
    """
    model = empty_model(folder, options, dtype, whole)
    kinds = sorted({type(block).__name__ for block in blocks_of(model, Checkpoint(folder).geometry.family)})
    # On the processor or the disk there would be room for the rest, but paging does that with less traffic.
    limits: dict[int | str, int | str] = {**dict[int | str, int | str](room.items()), "cpu": 0}
    found = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=kinds, dtype=dtype, offload_buffers=True)
    return None if {"cpu", "disk"} & set(map(str, found.values())) else dict(found)
