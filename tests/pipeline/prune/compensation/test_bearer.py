"""Who can add a constant in place of a sublayer that is gone: where there is somebody, nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.architecture.families import FAMILIES, Sublayer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.live.loading import load_model
from pipeline.prune.model.shrinking import ShrinkingModel
from tests.quick import quick_alone
from tests.tiny import TINY_MIXTURES, TINY_TYPES, tiny_model

TOKENS = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(5))
LIKE_LLAMA = ("llama", "qwen2", "granite", "phi", "cohere", "starcoder2")
QUICK = (*LIKE_LLAMA, "gemma2", "falcon_h1", "lfm2", "nemotron_h", "minicpm3", "qwen2_moe")


def opened(name: str, folder: Path) -> ShrinkingModel:
    source = tiny_model(name, folder)
    return ShrinkingModel(load_model(source, dtype=torch.float32), Checkpoint(source))


def writing(model: ShrinkingModel, place: tuple[int, Sublayer], said: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The readers of a sublayer say something else, until the handle is removed."""
    family = model.geometry.family
    module = model.model.get_submodule(family.module(place[0], family.reader(place[1]).name))
    return module.register_forward_hook(lambda _, inputs, output: said(output))


def logits(model: ShrinkingModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(TOKENS, use_cache=False).logits


def without(model: ShrinkingModel, block: int, sublayer: Sublayer) -> None:
    """The selection says that the sublayer is gone; the live model computes on."""
    kept = model.selection.units(sublayer)
    changed = tuple(() if number == block else units for number, units in enumerate(kept))
    model.selection = replace(model.selection, **{"ffn" if sublayer is Sublayer.FFN else "kv_groups": changed})


@pytest.mark.parametrize("name", quick_alone((*TINY_TYPES, *TINY_MIXTURES), QUICK))
def test_the_constant_does_the_same_there(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    family, constant = model.geometry.family, torch.linspace(-1, 1, model.geometry.hidden)
    for sublayer in family.cuttable:
        for block, shape in enumerate(model.geometry.blocks):
            bearer = model.bearer(block, sublayer) if shape.is_ordinary(sublayer) and shape.units(sublayer) else None
            if bearer is None:
                continue
            ratio = model.multiplier(sublayer) / model.multiplier(bearer[1])
            gives = writing(model, (block, sublayer), lambda output: constant.expand_as(output))
            before = logits(model)
            gives.remove()
            silent = writing(model, (block, sublayer), torch.zeros_like)
            bears = writing(model, bearer, lambda output, ratio=ratio: output + ratio * constant)
            torch.testing.assert_close(logits(model), before, atol=2e-5, rtol=1e-4, msg=f"{name}: {sublayer} of block {block} by {bearer}")
            silent.remove()
            bears.remove()


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_there_is_one_behind_the_first_sublayer(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    assert all(model.bearer(block, sublayer) for block in (1, 2) for sublayer in Sublayer)
    assert (model.bearer(0, Sublayer.ATTENTION) is None) is not FAMILIES[name].is_parallel


def test_attention_hands_over_to_the_ffn_that_is_parallel_to_it(tmp_path: Path) -> None:
    model = opened("phi", tmp_path)
    assert model.bearer(2, Sublayer.ATTENTION) == (2, Sublayer.FFN)
    without(model, 2, Sublayer.FFN)
    assert model.bearer(2, Sublayer.ATTENTION) == (1, Sublayer.FFN)


@pytest.mark.parametrize(
    ("name", "sublayer"),
    [
        ("gemma2", Sublayer.FFN),  # a norm stands behind both
        ("gemma2", Sublayer.ATTENTION),
        ("olmo2", Sublayer.FFN),
        ("qwen2_moe", Sublayer.FFN),  # a gate, and routed experts that read the stream as it was
        ("deepseek_v3", Sublayer.FFN),
        ("falcon_h1", Sublayer.ATTENTION),  # a mixer beside its heads
    ],
)
def test_where_it_would_not_be_the_same_there_is_none(name: str, sublayer: Sublayer, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    block = max(number for number, shape in enumerate(model.geometry.blocks) if shape.is_ordinary(sublayer) and shape.units(sublayer))
    assert model.bearer(block, sublayer) is None


def test_experts_that_stay_are_no_neighbour_to_step_over(tmp_path: Path) -> None:
    """Block 1 has routed experts and nothing else that takes a bias: what block 2's attention gave would pass them by."""
    model = opened("mixtral", tmp_path)
    assert model.bearer(2, Sublayer.ATTENTION) is None
