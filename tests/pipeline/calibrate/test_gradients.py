"""The sweep backwards against plain autograd on the whole model, for every family."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import nn

from pipeline.architecture.families import FAMILIES, Family, Point, Sublayer
from pipeline.calibrate.block_gradients import SCALE, add_weight_gradients, mask_gradients
from pipeline.calibrate.gradients import BlockGradients, GradientNeeds, gradient_sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.live.blocks import blocks_of, linear_in
from pipeline.live.loading import load_model
from pipeline.tensors.saved_states import SavedStates
from tests.quick import some_types
from tests.tiny import TINY_FAMILIES, VOCAB, tiny_model

WINDOWS = torch.randint(4, VOCAB, (5, 12), generator=torch.Generator().manual_seed(7))
BOTH = frozenset(Sublayer)


def everything(family: Family, half: bool = False) -> GradientNeeds:
    names = frozenset(linear.name for linear in family.linears)
    return GradientNeeds(weights=names, kronecker=names, masks=BOTH, half=half)


def swept(model: nn.Module, family: Family, needs: GradientNeeds, windows: torch.Tensor = WINDOWS) -> dict[int, BlockGradients]:
    return dict(gradient_sweep(model, family, windows, needs, Events()))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def loss_of(model: nn.Module, window: torch.Tensor) -> torch.Tensor:
    return model(input_ids=window[None], labels=window[None], use_cache=False).loss


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Family]:
    folder = tiny_model(request.param, tmp_path_factory.mktemp("tiny"))
    return load_model(folder), Checkpoint(folder).geometry.family


@pytest.fixture
def llama(tmp_path: Path) -> tuple[nn.Module, Family]:
    folder = tiny_model("llama", tmp_path)
    return load_model(folder), Checkpoint(folder).geometry.family


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 2, 2 and 1 windows; the head takes 22, 22 and 11 rows as 8, 8, 6 and so on."""
    monkeypatch.setattr("pipeline.live.blocks.BATCH_TOKENS", 24)
    monkeypatch.setattr("pipeline.calibrate.gradients.HEAD_TOKENS", 8)


@pytest.mark.usefixtures("small_batches")
def test_weight_gradients_are_those_of_each_sequences_own_loss(tiny: tuple[nn.Module, Family]) -> None:
    model, family = tiny
    names = [linear.name for linear in family.linears]
    found = swept(model, family, GradientNeeds(weights=frozenset(names)))
    assert list(found) == [3, 2, 1, 0]
    for number, gradients in found.items():
        weights = [model.get_parameter(family.module(number, name) + ".weight") for name in names]
        rows = [torch.autograd.grad(loss_of(model, window), weights) for window in WINDOWS]
        for name, per_sequence in zip(names, zip(*rows, strict=True), strict=True):
            close(gradients.absolute[name], torch.stack(per_sequence).abs().sum(0))
            close(gradients.squares[name], torch.stack(per_sequence).square().sum(0))
        assert (gradients.tokens, gradients.sequences) == (60, 5)


def note_read(into: list[torch.Tensor]) -> Callable[..., None]:
    return lambda _, inputs, __: into.append(inputs[0].detach().flatten(0, -2))


def note_written(into: list[torch.Tensor]) -> Callable[..., None]:
    return lambda _, __, gradients: into.append(gradients[0].flatten(0, -2))


@pytest.mark.usefixtures("small_batches")
def test_kronecker_factors_are_second_moments_over_tokens(tiny: tuple[nn.Module, Family]) -> None:
    model, family = tiny
    names = [linear.name for linear in family.linears]
    reads: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    writes: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    found = swept(model, family, GradientNeeds(kronecker=frozenset(names)))[2]
    handles = []
    for name in names:
        module = model.get_submodule(family.module(2, name))
        handles += [module.register_forward_hook(note_read(reads[name])), module.register_full_backward_hook(note_written(writes[name]))]
    for window in WINDOWS:
        loss_of(model, window).backward()
    model.zero_grad()
    for handle in handles:
        handle.remove()
    assert set(found.inputs) == set(found.totals) == set(Point)
    for linear in family.linears:
        read, written = torch.cat(reads[linear.name]), torch.cat(writes[linear.name])
        close(found.outputs[linear.name], written.T @ written)
        close(found.inputs[linear.point], read.T @ read)
        close(found.totals[linear.point], read.sum(0))


@pytest.mark.usefixtures("small_batches")
def test_relative_moments_weigh_inputs_one_way_and_gradients_the_other(llama: tuple[nn.Module, Family]) -> None:
    model, family = llama
    number, reads, writes, streams = 2, {}, {}, {}
    readers = {sublayer: family.reader(sublayer).name for sublayer in Sublayer}
    found = swept(model, family, GradientNeeds(kronecker=frozenset(readers.values()), relative=True))[number]
    block = blocks_of(model, family)[number]
    handles = [block.register_forward_hook(lambda _, inputs, output: streams.update(entered=inputs[0].detach(), left=output.detach()))]
    for name in readers.values():
        reads[name], writes[name] = [], []
        module = block.get_submodule(name)
        handles += [module.register_forward_hook(note_read(reads[name])), module.register_full_backward_hook(note_written(writes[name]))]
    weights: dict[str, list[torch.Tensor]] = {"entered": [], "left": []}
    for window in WINDOWS:
        loss_of(model, window).backward()
        for name, of in weights.items():
            of.append(1 / streams[name][0].square().mean(-1))
    model.zero_grad()
    for handle in handles:
        handle.remove()
    for sublayer, stream in ((Sublayer.ATTENTION, "entered"), (Sublayer.FFN, "left")):
        name = readers[sublayer]
        read, written = torch.cat(reads[name]), torch.cat(writes[name])
        weight = torch.cat(weights[stream])
        weight = (weight / weight.mean())[:, None]
        assert weight.max() > 1.2 * weight.min()
        close(found.inputs[sublayer.point], (weight * read).T @ read)
        close(found.totals[sublayer.point], (weight * read).sum(0))
        close(found.outputs[name], (written / weight).T @ written)


@pytest.mark.usefixtures("small_batches")
def test_mask_gradients_are_those_of_a_mask(tiny: tuple[nn.Module, Family]) -> None:
    assert compared_masks(*tiny) == 4


def compared_masks(model: nn.Module, family: Family) -> int:
    """How many masks of the first and the last block that have any were compared with autograd's."""
    found = swept(model, family, GradientNeeds(masks=BOTH))
    compared = 0
    for sublayer in family.cuttable:
        readers = {number: linear_in(block, family.reader(sublayer)) for number, block in enumerate(blocks_of(model, family))}
        there = [number for number, reader in readers.items() if reader is not None]
        for number in (there[0], there[-1]):
            reader = readers[number]
            assert reader is not None
            mask = torch.ones(reader.in_features, requires_grad=True)
            handle = reader.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
            expected = [torch.autograd.grad(loss_of(model, window), mask)[0] for window in WINDOWS]
            handle.remove()
            close(found[number].masks[sublayer], torch.stack(expected))
            compared += 1
    return compared


OTHERS = tuple(sorted(name for name, family in FAMILIES.items() if family.kinds.rules or family.kinds.costs or family.mixture))


@pytest.mark.parametrize("name", some_types(OTHERS))
def test_so_are_those_of_hybrids_and_mixtures(tmp_path: Path, name: str) -> None:
    """What stands beside an FFN may read what its reader writes, such as the gate of a shared expert."""
    folder = tiny_model(name, tmp_path)
    model, family = load_model(folder), Checkpoint(folder).geometry.family
    assert compared_masks(model, family) == 2 * len(family.cuttable)


def test_only_what_is_needed_is_collected(llama: tuple[nn.Module, Family]) -> None:
    needs = GradientNeeds(weights=frozenset({"mlp.up_proj"})) | GradientNeeds(masks=frozenset({Sublayer.FFN}))
    for gradients in swept(*llama, needs).values():
        assert gradients.absolute.keys() == gradients.squares.keys() == {"mlp.up_proj"}
        assert gradients.masks.keys() == {Sublayer.FFN}
        assert not gradients.outputs
        assert not gradients.inputs


def test_needs_are_joined() -> None:
    assert not GradientNeeds()
    assert not GradientNeeds(half=True)
    first = GradientNeeds(weights=frozenset("a"), half=True)
    second = GradientNeeds(kronecker=frozenset("b"), masks=BOTH)
    assert first
    assert second
    assert first | second == GradientNeeds(frozenset("a"), frozenset("b"), BOTH, True)


def test_published_sums_are_rounded_to_fp16(llama: tuple[nn.Module, Family]) -> None:
    model, family = llama
    found = swept(model, family, everything(family, half=True))[1]
    weight = model.get_parameter(family.module(1, "mlp.up_proj") + ".weight")
    total = torch.zeros(weight.shape, dtype=torch.float16)
    exact, squares = torch.zeros(weight.shape), torch.zeros(weight.shape)
    for window in WINDOWS:
        (gradient,) = torch.autograd.grad(loss_of(model, window), weight)
        total += (100 * gradient.half()).abs()
        squares += gradient.half().float().square()
        exact += gradient.abs()
    halves = found.absolute["mlp.up_proj"] * 100
    torch.testing.assert_close(halves, total.float(), rtol=2e-3, atol=2e-5)  # one step of fp16, where rounding fell otherwise
    assert ((halves - total.float()).abs() < 1e-6).float().mean() > 0.9
    assert ((halves - 100 * exact).abs() > 1e-5).float().mean() > 0.3  # and not the sum itself
    torch.testing.assert_close(found.squares["mlp.up_proj"], squares, rtol=2e-3, atol=1e-12)


def test_published_gradients_are_rounded_before_they_are_multiplied_by_100() -> None:
    """A gradient below half of fp16's least number is nothing, and one near it a whole number of them."""
    least = 2.0**-24
    outputs = torch.tensor([[[0.4 * least], [0.0]], [[1.6 * least], [0.0]]]) * SCALE
    absolute, squares = torch.zeros(1, 1, dtype=torch.float16), torch.zeros(1, 1)
    add_weight_gradients(absolute, squares, torch.ones(2, 2, 1), outputs)
    assert absolute.item() == 200 * least
    assert squares.item() / SCALE**2 == (2 * least) ** 2


def test_gradients_of_one_sequence_do_not_depend_on_its_neighbours(llama: tuple[nn.Module, Family]) -> None:
    alone = swept(*llama, GradientNeeds(masks=BOTH), WINDOWS[1:2])
    together = swept(*llama, GradientNeeds(masks=BOTH))
    for number, gradients in together.items():
        for sublayer in Sublayer:
            close(gradients.masks[sublayer][1:2], alone[number].masks[sublayer])


def test_a_product_of_bf16_gradients_is_exact_to_fp32() -> None:
    inputs, outputs = torch.randn(2, 300, 40).bfloat16(), torch.randn(2, 300, 50).bfloat16()
    inputs[:, 0] *= 3000  # a massive token
    exact = outputs.double().mT @ inputs.double()
    absolute, squares = torch.zeros(50, 40), torch.zeros(50, 40)
    add_weight_gradients(absolute, squares, inputs, outputs)
    torch.testing.assert_close(absolute.double(), exact.abs().sum(0), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(squares.double(), exact.square().sum(0), rtol=1e-5, atol=1e-2)
    masks = mask_gradients(inputs, outputs[..., :40])
    torch.testing.assert_close(masks.double(), (inputs.double() * outputs[..., :40].double()).sum(1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
def test_half_precision_models_give_the_gradients_roughly(llama: tuple[nn.Module, Family], dtype: torch.dtype, tolerance: float) -> None:
    model, family = llama
    expected = swept(model, family, everything(family))
    for number, gradients in swept(model.to(dtype), family, everything(family)).items():
        for found, wanted in zip(gradients.tensors(), expected[number].tensors(), strict=True):
            assert found.dtype == torch.float32
            assert (found - wanted).norm() < tolerance * wanted.norm()


def test_fp16_gradients_that_would_vanish_do_not(llama: tuple[nn.Module, Family]) -> None:
    model, family = llama
    windows = torch.randint(4, VOCAB, (1, 200))
    model.get_parameter("lm_head.weight").data *= 1e-3  # gradients below fp16's smallest number
    needs = GradientNeeds(masks=BOTH)
    expected = swept(model, family, needs, windows)[3].masks[Sublayer.FFN]
    found = swept(model.half(), family, needs, windows)[3].masks[Sublayer.FFN]
    assert expected.abs().max() * SCALE > 6e-8
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.usefixtures("small_batches")
def test_states_in_files_are_the_states(llama: tuple[nn.Module, Family], monkeypatch: pytest.MonkeyPatch) -> None:
    model, family = llama
    for dtype in (torch.float32, torch.bfloat16):
        held = swept(model.to(dtype), family, everything(family))
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.tensors.saved_states.MEMORY_LIMIT", 10_000)  # the first blocks only, at both widths
            filed = swept(model, family, everything(family))
        for number, gradients in held.items():
            assert all(torch.equal(a, b) for a, b in zip(gradients.tensors(), filed[number].tensors(), strict=True))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[IO[bytes]]:
    """The temporary files that were opened, in a folder where nothing else is."""
    opened: list[IO[bytes]] = []
    folder = tmp_path / "temporary"
    folder.mkdir()
    real = tempfile.TemporaryFile

    def temporary(**options: Any) -> IO[bytes]:
        opened.append(real(dir=folder, **options))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    monkeypatch.setattr("pipeline.tensors.saved_states.MEMORY_LIMIT", 0)
    return opened


def test_the_file_has_no_name_and_goes_when_the_sweep_is_left(
    llama: tuple[nn.Module, Family], files: list[IO[bytes]], tmp_path: Path
) -> None:
    sweep: Iterator[tuple[int, BlockGradients]] = gradient_sweep(*llama, WINDOWS, GradientNeeds(masks=BOTH), Events())
    next(sweep)
    (file,) = files
    assert file.seek(0, 2) == 4 * WINDOWS.numel() * 64 * 4  # blocks, tokens, hidden size, bytes
    assert not list((tmp_path / "temporary").iterdir())
    sweep.close()  # type: ignore[attr-defined]
    assert file.closed
    swept(*llama, GradientNeeds(masks=BOTH))
    assert files[1].closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_says_so() -> None:
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "r+b") as file:
        SavedStates(file, 0).put((0, 0), torch.ones(10_000))


def test_gradients_that_overflow_are_refused(llama: tuple[nn.Module, Family], files: list[IO[bytes]]) -> None:
    model, family = llama
    model.half().get_parameter("lm_head.weight").data.fill_(6e4)
    with pytest.raises(TrimlineError, match=r"gradients of block 3 .*float16.*--dtype float32"):
        swept(model, family, GradientNeeds(masks=BOTH))
    assert [file.closed for file in files] == [True]


def test_windows_without_a_token_to_predict_are_refused(llama: tuple[nn.Module, Family]) -> None:
    with pytest.raises(TrimlineError, match="one token long"):
        swept(*llama, GradientNeeds(masks=BOTH), WINDOWS[:, :1])


def test_the_model_is_as_before(llama: tuple[nn.Module, Family]) -> None:
    model, family = llama
    model.train()
    model.get_submodule("model.layers.1").eval()
    model.get_parameter("model.norm.weight").requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = {name: module.training for name, module in model.named_modules()}
    sweep = gradient_sweep(model, family, WINDOWS, everything(family), Events())
    next(sweep)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    sweep.close()  # type: ignore[attr-defined]
    assert wanted == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert training == {name: module.training for name, module in model.named_modules()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_whoever_takes_a_block_may_change_it(llama: tuple[nn.Module, Family]) -> None:
    model, family = llama
    expected = swept(model, family, GradientNeeds(masks=BOTH))
    for number, gradients in gradient_sweep(model, family, WINDOWS, GradientNeeds(masks=BOTH), Events()):
        assert torch.equal(gradients.masks[Sublayer.FFN], expected[number].masks[Sublayer.FFN])
        for parameter in blocks_of(model, family)[number].parameters():
            parameter.data.zero_()


def test_progress_counts_blocks_there_and_back(llama: tuple[nn.Module, Family]) -> None:
    heard: list[Event] = []
    list(gradient_sweep(*llama, WINDOWS, GradientNeeds(masks=BOTH), Events(heard.append)))
    assert [event.done for event in heard if event.kind == "progress"] == list(range(9))
