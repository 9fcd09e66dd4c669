"""The sweep against hooks on the model's own forward, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.architecture.families import Point
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import InputStatistics, angles, cosines
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Event, Events
from pipeline.live.loading import load_model
from tests.tiny import TINY_FAMILIES, VOCAB, tiny_model

EVERY = frozenset(Point)


def turned(before: torch.Tensor, after: torch.Tensor) -> float:
    """Σ over tokens of arccos(cosine) / π, in fp64."""
    before, after = before.double(), after.double()
    cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    return cosine.arccos().sum().item() / torch.pi


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_statistics_are_those_of_the_models_own_forward(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path)
    model, description = load_model(folder), Checkpoint(folder).geometry.family
    windows = torch.randint(4, VOCAB, (5, 20))
    seen: dict[str, torch.Tensor] = {}
    readers = {p: description.module(1, description.reading(p)[0].name) for p in EVERY}
    for point, name in readers.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, point=point: seen.__setitem__(point, inputs[0].flatten(0, -2))
        )
    block = model.get_submodule(f"{description.blocks}.1")
    block.register_forward_hook(
        lambda _, args, kwargs, output: seen.update(before=args[0] if args else kwargs["hidden_states"], after=output), with_kwargs=True
    )
    with torch.inference_mode():
        model(windows, use_cache=False)
    expected = dict(seen)
    for module in (block, *(model.get_submodule(name) for name in readers.values())):
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()

    statistics = dict(sweep(model, description, windows, Needs(distance=True, squares=EVERY, gram=EVERY), Events()))[1]
    assert (statistics.tokens, statistics.sequences) == (100, 5)
    for point in EVERY:
        rows = expected[point]
        found = statistics.inputs[point]
        torch.testing.assert_close(found.squares, rows.square().sum(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.total, rows.sum(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.gram(), rows.T @ rows, rtol=1e-4, atol=1e-4)
    assert statistics.distance == pytest.approx(turned(expected["before"], expected["after"]), rel=1e-4)


def test_only_what_is_needed_is_collected(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    model, description = load_model(folder), Checkpoint(folder).geometry.family
    needs = Needs(squares=frozenset({Point.CHANNELS}))
    for _, statistics in sweep(model, description, torch.randint(4, VOCAB, (2, 8)), needs, Events()):
        assert statistics.distance == 0
        assert set(statistics.inputs) == {Point.CHANNELS}
        assert statistics.inputs[Point.CHANNELS].upper is None


def test_the_model_is_as_before_after_a_sweep(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    model, description = load_model(folder), Checkpoint(folder).geometry.family
    windows = torch.randint(4, VOCAB, (2, 8))
    with torch.inference_mode():
        before = model(windows).logits
    list(sweep(model, description, windows, Needs(distance=True, gram=EVERY), Events()))
    with torch.inference_mode():
        assert torch.equal(model(windows).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_of_unlike_shape_get_their_own_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model("opt", tmp_path)
    model, description = load_model(folder), Checkpoint(folder).geometry.family
    windows = torch.randint(4, VOCAB, (5, 10))
    needs = Needs(distance=True, squares=EVERY)
    whole = list(sweep(model, description, windows, needs, Events()))
    monkeypatch.setattr("pipeline.live.blocks.BATCH_TOKENS", 20)  # batches of 2, 2 and 1 windows
    parts = list(sweep(model, description, windows, needs, Events()))
    for (_, a), (_, b) in zip(whole, parts, strict=True):
        assert a.distance == pytest.approx(b.distance, rel=1e-4)
        torch.testing.assert_close(a.inputs[Point.CHANNELS].squares, b.inputs[Point.CHANNELS].squares, rtol=1e-4, atol=1e-6)


def test_progress_counts_blocks(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    heard: list[Event] = []
    list(sweep(load_model(folder), Checkpoint(folder).geometry.family, torch.ones(1, 8, dtype=torch.long), Needs(), Events(heard.append)))
    assert [event.done for event in heard if event.kind == "progress"] == [0, 1, 2, 3, 4]


def test_a_cosine_above_one_is_no_nan() -> None:
    # A token whose norm dwarfs what the block adds: rounding lifts its cosine above 1.
    before = torch.full((200, 576), 24_000.0 / 24) * (1 + torch.rand(200, 576) * 1e-3)
    distances = angles(cosines(before, before * (1 + 1e-7)))
    assert torch.isfinite(distances).all()
    assert distances.max() < 1e-3


def test_angles_between_vectors() -> None:
    ahead = torch.tensor([[1.0, 0.0]])
    assert angles(cosines(ahead, torch.tensor([[0.0, 2.0]]))).item() == pytest.approx(0.5)
    assert angles(cosines(ahead, torch.tensor([[-3.0, 0.0]]))).item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gram_matrix_is_exact_to_fp32_whatever_the_dtype(dtype: torch.dtype) -> None:
    rows = torch.randn(3000, 600).to(dtype)
    rows[0] *= 3000  # a massive token: one rounding of its products to bf16 would drown the other channels
    exact = rows.double().T @ rows.double()
    seen = InputStatistics.zeros(600, True, torch.device("cpu"))
    for part in rows.split(1024):
        seen.add(part)
    scale = exact.diagonal().sqrt()
    assert ((seen.gram().double() - exact) / scale[:, None] / scale).abs().max() < 1e-5
    torch.testing.assert_close(seen.squares.double(), exact.diagonal(), rtol=1e-5, atol=0)
    torch.testing.assert_close(seen.total.double(), rows.double().sum(0), rtol=1e-4, atol=1e-2)
    torch.linalg.cholesky(seen.gram().double() + 1e-2 * exact.diagonal().mean() / 3000 * torch.eye(600))


def test_the_precision_of_other_products_is_left_alone() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    InputStatistics.zeros(8, True, torch.device("cpu")).add(torch.randn(16, 8).to(torch.bfloat16))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
