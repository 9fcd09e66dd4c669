"""Training that no device could hold: weights, gradients and optimiser shared by all processes, block by block (torch's FSDP2).

accelerate shards on GPUs only and drops the setting on processors without a word; there it is told again, so that two
processes on one machine show what eight GPUs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import Trainer

from pipeline.common.errors import TrimlineError
from pipeline.recover.processes import processes


def fsdp_settings(blocks: nn.ModuleList) -> dict[str, Any]:
    """What the Trainer is told: each decoder block is gathered when it runs, and let go of afterwards.

    No states are saved: of a sharded run they would be pickles.
    """
    kinds = sorted({type(block).__name__ for block in blocks})
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": kinds}, "save_strategy": "no"}


def demand_processes() -> None:
    """Refuses to share among one.

    Raises:
        TrimlineError: this process was not started as one of several.
    """
    if processes() < 2:
        raise TrimlineError(
            "recover.sharded shares the training among processes, and there is one.",
            "Launch trimline recover by torchrun with --nproc-per-node 2 or more, or leave recover.sharded out.",
        )


class ShardingTrainer(Trainer):
    """transformers' Trainer, which shards on processors too where it is told to shard."""

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer calls it."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type is DistributedType.MULTI_CPU:
            plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            if self.accelerator.mixed_precision != "no":
                plugin.set_mixed_precision(self.accelerator.mixed_precision)
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
            self.is_fsdp_enabled = True


def whole_state(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Every tensor of a sharded model, whole and on the processor, in the first process; nothing in the others.

    All processes have to call it.
    """
    whole: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return dict(whole)


def local(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight: all of it, where it is not sharded."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
