"""A model on several GPUs, without any: the map, the hooks on one processor, and the sweeps on devices that are only pretended."""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode

import pipeline.calibrate.sweep
import pipeline.live.blocks
from pipeline.architecture.families import FAMILIES, Point, Sublayer
from pipeline.calibrate import gradients
from pipeline.calibrate.gradients import gradient_sweep
from pipeline.calibrate.needs import GradientNeeds, Needs
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import load_model
from pipeline.live.placing import device_map, devices_for, empty_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from tests.pipeline.prune.test_measure import STEPS, TOKENS
from tests.tiny import tiny_model

OPTIONS = RunOptions(dtype="float32", threads=1)
LAYERS = "model.layers"
PRETENDED = "lazy"  # the only kind of device that comes in numbers, and for which torch asks no driver


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense"))


def sizes(folder) -> tuple[int, int, int]:
    """Bytes in fp32 of the embeddings, of one block, and of all."""
    geometry = Checkpoint(folder).geometry
    block = sum(4 * torch.Size(shape).numel() for name, shape in geometry.tensors() if name.startswith(f"{LAYERS}.0."))
    return 4 * geometry.vocab * geometry.hidden, block, 4 * geometry.total_parameters()


def test_blocks_are_never_split(dense):
    table, block, _ = sizes(dense)
    places = device_map(dense, OPTIONS, torch.float32, {0: table + 2 * block + block // 2, 1: 10 * block, 2: 10 * block})
    assert places is not None
    of_blocks = {name: device for name, device in places.items() if name.startswith(LAYERS)}
    assert set(of_blocks) == {f"{LAYERS}.{number}" for number in range(4)}
    assert set(of_blocks.values()) == {0, 1}
    assert list(of_blocks.values()) == sorted(of_blocks.values())


def test_what_all_together_do_not_hold_is_not_placed(dense):
    table, block, whole = sizes(dense)
    assert device_map(dense, OPTIONS, torch.float32, {0: table + block, 1: block}) is None
    assert device_map(dense, OPTIONS, torch.float32, {0: 2 * whole}) == {"": 0}


def test_without_several_gpus_nothing_is_placed(dense, monkeypatch):
    assert devices_for(dense, OPTIONS, torch.float32) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (0, 2 * sizes(dense)[2]))
    assert devices_for(dense, RunOptions(device="cuda"), torch.float32) is not None
    assert devices_for(dense, RunOptions(device="cuda", memory=1), torch.float32) is None, "a budget was given"


@pytest.mark.parametrize("name", ["cfsp, sequential", "gblm", "trimline"])
def test_with_accelerates_hooks_every_decision_is_the_same(name, dense):
    """All on one processor: the hooks carry nothing anywhere, but stand around every block, its copies and its stand-ins."""
    recipe, plans = PruneSlice.model_validate({"steps": [STEPS[name]]}), []
    for hooked in (False, True):
        model = load_model(dense, dtype=torch.float32)
        if hooked:
            parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *(f"{LAYERS}.{number}" for number in range(4))]
            model = dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
            assert all(hasattr(block, "_hf_hook") for block in blocks_of(model, FAMILIES["llama"]))
        plans.append(make_plan(ShrinkingModel(model, Checkpoint(dense)), torch.tensor(TOKENS), recipe, Events()))
    assert plans[0].selection == plans[1].selection
    assert set(plans[0].updates) == set(plans[1].updates)
    assert all(torch.equal(value, plans[1].updates[update]) for update, value in plans[0].updates.items())


@pytest.fixture
def spread(dense):
    """A model whose tensors have no values, the first half on one GPU and the rest on another; mixing the two is an error."""
    second = (f"{LAYERS}.2", f"{LAYERS}.3", "model.norm", "lm_head")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = empty_model(dense, OPTIONS, torch.float32)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            parent, _, leaf = name.rpartition(".")
            owner, value = model.get_submodule(parent), torch.empty(tensor.shape, device=f"{PRETENDED}:{int(name.startswith(second))}")
            if isinstance(tensor, torch.nn.Parameter):
                owner.register_parameter(leaf, torch.nn.Parameter(value, requires_grad=False))
            else:
                owner.register_buffer(leaf, value, persistent=False)
        for part, device in (("model.embed_tokens", 0), ("model.norm", 1), ("lm_head", 1)):
            model.get_submodule(part).register_forward_pre_hook(carried_to(f"{PRETENDED}:{device}"))
        yield model


def carried_to(device: str):
    """What accelerate's hooks do around everything that is no block."""
    return lambda _, inputs: tuple(tensor.to(device) for tensor in inputs)


@pytest.fixture
def unasked(monkeypatch):
    """Nothing asks tensors without values whether they are finite."""
    for module in (pipeline.live.blocks, pipeline.calibrate.sweep, gradients):
        monkeypatch.setattr(module, "demand_finite", lambda *_: None)


@pytest.mark.usefixtures("unasked")
def test_hidden_states_follow_the_blocks(spread):
    needs = Needs(squares=frozenset(Point), gram=frozenset({Point.CHANNELS}))
    seen = {}
    for number, statistics in sweep(spread, FAMILIES["llama"], torch.tensor(TOKENS), needs, Events(), sequential=True):
        found = statistics.inputs[Point.CHANNELS]
        seen[number] = {str(found.squares.device), str(found.upper.device)}
    assert seen == {0: {"lazy:0"}, 1: {"lazy:0"}, 2: {"lazy:1"}, 3: {"lazy:1"}}


@pytest.mark.usefixtures("unasked")
def test_gradients_go_back_the_same_way(spread, monkeypatch):
    monkeypatch.setattr(gradients, "_loss_gradient", lambda _, __, hidden, ___: torch.zeros_like(hidden))  # picks logits by value
    found = gradient_sweep(
        spread, FAMILIES["llama"], torch.tensor(TOKENS), GradientNeeds(frozenset({"mlp.down_proj"}), masks=frozenset(Sublayer)), Events()
    )
    assert [(number, {str(tensor.device) for tensor in block.tensors()}) for number, block in found] == [
        (3, {"lazy:1"}), (2, {"lazy:1"}), (1, {"lazy:0"}), (0, {"lazy:0"}),
    ]  # fmt: skip
