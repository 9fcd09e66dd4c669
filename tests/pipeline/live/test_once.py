"""A block whose attention was run before, and the same block run whole, for every family."""

from __future__ import annotations

import pytest
import torch

from pipeline.architecture.families import Sublayer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.live.blocks import blocks_of, enter
from pipeline.live.loading import load_model
from pipeline.live.once import run_attention
from tests.tiny import TINY_FAMILIES, VOCAB, tiny_model

WINDOWS = torch.randint(4, VOCAB, (3, 12), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("family", TINY_FAMILIES)
@torch.inference_mode()
def test_a_block_goes_on_from_its_attention(family, tmp_path) -> None:
    folder = tiny_model(family, tmp_path)
    model, described = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    states, arguments = enter(model, described, (WINDOWS,))
    block, reader = blocks_of(model, described)[0], described.reader(Sublayer.ATTENTION).name
    given = arguments[0][0]
    run = run_attention(block, reader, states[0], given)
    calls: list[None] = []
    handle = block.get_submodule(reader).register_forward_hook(lambda *_: calls.append(None))
    with run.standing_in(block, reader, run.wrote):
        assert torch.equal(given.through(block, states[0]), given.through(block, states[0]))
        went_on = given.through(block, states[0])
    without = len(calls)
    whole = given.through(block, states[0])
    handle.remove()
    assert torch.equal(went_on, whole)
    assert (without, len(calls)) == (0, 1)
    with run.standing_in(block, reader, torch.zeros_like(run.wrote)):
        assert not torch.equal(given.through(block, states[0]), whole)


@torch.inference_mode()
def test_an_attention_that_does_more_behind_its_reader_is_run_again(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path)
    model, described = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    states, arguments = enter(model, described, (WINDOWS,))
    block, reader = blocks_of(model, described)[0], described.reader(Sublayer.ATTENTION).name
    original = block.self_attn.forward
    block.self_attn.forward = lambda *given, **named: (2 * original(*given, **named)[0], None)
    given = arguments[0][0]
    run = run_attention(block, reader, states[0], given)
    assert run.gave is None
    with run.standing_in(block, reader, torch.zeros_like(run.wrote)):
        assert torch.equal(given.through(block, states[0]), given.through(block, states[0]))
        assert not torch.equal(given.through(block, states[0]), states[0])
