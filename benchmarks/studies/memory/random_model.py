"""Checkpoints of random weights at the shapes of real models, for what depends on shapes alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import write_checkpoint

LLAMA_2_7B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


class RandomTensors(Mapping[str, torch.Tensor]):
    """The tensors of a geometry in bf16, each made when it is asked for, and the same whenever it is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._shapes = dict(Geometry.from_config(config).tensors())

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        value = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) == 1:
            return value.fill_(1.0)
        return value.normal_(std=shape[1] ** -0.5, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def random_model(folder: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint of these shapes in bf16, a shard in memory at a time."""
    folder.mkdir(parents=True)
    write_checkpoint(folder, config, RandomTensors(config))
    return folder
