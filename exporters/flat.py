"""A decoder whose cache is plain tensors, in and out: what exporters trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pipeline.architecture.geometry import Geometry


class FlatDecoder(nn.Module):
    """The model with its cache as plain tensors, and a mask made from the inputs alone.

    transformers asks the cache of one chosen block how long the past is, and a pruned block may have none.
    """

    def __init__(self, model: PreTrainedModel, slots: list[int]) -> None:
        super().__init__()
        self.model, self.slots = model, slots
        config = model.config
        window = getattr(config, "sliding_window", None)
        self.window = window if getattr(config, "use_sliding_window", True) else None
        self.dtype = model.dtype
        self.kinds = set(getattr(config, "layer_types", None) or ())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        cache = self.cache(past)
        out = self.model(
            input_ids=input_ids,
            attention_mask=self._mask(input_ids, attention_mask, position_ids),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [t for slot in self.slots for t in (cache.layers[slot].keys, cache.layers[slot].values)]
        return (out.logits.float(), *present)

    def cache(self, past: list[Tensor]) -> Any:
        """transformers' cache, filled with keys and values of each block with attention, in turn."""
        cache: Any = DynamicCache()
        for place, slot in enumerate(self.slots):
            cache.update(past[2 * place], past[2 * place + 1], slot)
        return cache

    def in_window(self, seen: Tensor, places: Tensor, position_ids: Tensor) -> Tensor:
        """The additive mask of a block with a sliding window, (batch, 1, sequence, total).

        Args:
            seen: what a block without one may look at, (batch, sequence, total).
            places: of tokens in the cache, counted without padding, (batch, total).
            position_ids: of the queries, (batch, sequence).
        """
        assert self.window is not None
        return additive((seen & (places[:, None, :] > position_ids[:, :, None] - self.window))[:, None], self.dtype)

    def _mask(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        sequence, total = input_ids.shape[1], attention_mask.shape[1]
        queries = (torch.arange(sequence) + (total - sequence))[:, None]
        seen = (torch.arange(total)[None, :] <= queries)[None] & attention_mask.bool()[:, None, :]
        masks = {"full_attention": additive(seen[:, None], self.dtype)}
        if self.window is not None:
            # A window counts tokens, and padding may stand between them: places in the cache will not do.
            places = attention_mask.cumsum(1) - 1
            masks["sliding_attention"] = self.in_window(seen, places, position_ids)
        if "sliding_attention" in self.kinds:
            return masks
        return masks["sliding_attention" if self.window is not None else "full_attention"]


def cache_slots(model: PreTrainedModel, geometry: Geometry, with_attention: list[int]) -> list[int]:
    """Where in transformers' cache each block with attention keeps its keys: not always at the block's own number."""
    family = geometry.family
    modules: list[Any] = [model.get_submodule(family.module(number, family.attention)) for number in with_attention]
    return [module.layer_idx for module in modules]


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look and a large negative number elsewhere, both (batch, 1, sequence, total).

    Not -inf: a query that may look nowhere (padding) would become NaN and spread through the cache.
    """
    return torch.where(seen, torch.zeros((), dtype=dtype), torch.full((), torch.finfo(dtype).min, dtype=dtype))


def sample_call(geometry: Geometry, with_attention: list[int], dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments that exporters trace: token ids, mask and positions (batch, tokens), and the list of caches (batch, KV heads, past, head_dim)."""
    # No two sizes alike and none 0 or 1, which torch.export would take for a constant.
    batch, sequence, past = 2, 3, 5
    ids = torch.ones(batch, sequence, dtype=torch.long)
    mask = torch.ones(batch, past + sequence, dtype=torch.long)
    positions = torch.arange(past, past + sequence).repeat(batch, 1)
    shapes = [(batch, geometry.blocks[number].kv_groups, past, geometry.head_dim) for number in with_attention for _ in range(2)]
    return ids, mask, positions, [torch.zeros(shape, dtype=dtype) for shape in shapes]
