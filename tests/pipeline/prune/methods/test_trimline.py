"""Trimline's own method: sizes under a budget and the refit, each against brute force, and the whole on every family."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise, product

import pytest
import torch

from pipeline.architecture.families import Sublayer
from pipeline.architecture.profile import Profile
from pipeline.calibrate.statistics import token_weights
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.live.loading import load_model
from pipeline.prune.allocation.marginal import Curve, lower_hull, sizes_within
from pipeline.prune.compensation.least_squares import least_squares
from pipeline.prune.compensation.towards_dense import DAMPINGS, Pull, best_damping, towards_dense
from pipeline.prune.methods.trimline import rank
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_step
from tests.pipeline.rebuild.cases import rebuilt
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

WINDOWS = torch.randint(4, 100, (12, 32), generator=torch.Generator().manual_seed(3))


def step(**options):
    return {"method": "trimline", "pooled": {"remove": 0.4}, "round_to": 8} | options


def test_sizes_are_the_best_of_all_that_save_as_much() -> None:
    curves = {
        "a": Curve((6, 4, 2), (0.0, 1.0, 5.0), 1.0),
        "b": Curve((6, 4, 2), (0.0, 2.0, 4.5), 1.0),
        "c": Curve((2, 1), (0.0, 3.5), 4.0),
    }
    for remove in (2, 4, 6, 8):
        sizes = sizes_within(curves, remove)
        saved = sum((curve.kept[0] - sizes[name]) * curve.cost for name, curve in curves.items())
        assert saved == pytest.approx(remove, abs=2)
        error = sum(curve.errors[list(curve.kept).index(sizes[name])] for name, curve in curves.items())
        others = [
            sum(curve.errors[place] for curve, place in zip(curves.values(), places, strict=True))
            for places in product(*(range(len(curve.kept)) for curve in curves.values()))
            if sum((c.kept[0] - c.kept[p]) * c.cost for c, p in zip(curves.values(), places, strict=True)) >= saved
        ]
        assert error == pytest.approx(min(others))


def test_a_hull_passes_over_what_is_not_convex() -> None:
    edges = lower_hull(Curve((8, 6, 4, 2), (0.0, 5.0, 6.0, 20.0), 1.0))
    assert [(edge.start, edge.stop) for edge in edges] == [(0, 2), (2, 3)]


def test_a_hull_lies_below_every_size_and_its_slopes_rise() -> None:
    errors = torch.rand(60, generator=torch.Generator().manual_seed(2)).sort().values.double()
    curve = Curve(tuple(range(60, 0, -1)), errors.tolist(), 2.0)
    edges = lower_hull(curve)
    assert [edge.stop for edge in edges[:-1]] == [edge.start for edge in edges[1:]]
    assert (edges[0].start, edges[-1].stop) == (0, 59)
    assert all(one.slope < other.slope for one, other in pairwise(edges))
    for edge in edges:
        line = [curve.errors[edge.start] + edge.slope * 2.0 * (place - edge.start) for place in range(60)]
        assert all(error >= at - 1e-12 for error, at in zip(curve.errors, line, strict=True))


@pytest.mark.parametrize("biased", [False, True])
def test_the_refit_is_the_minimum(biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, lag = torch.randn(300, 10, generator=generator) + 0.5, torch.randn(300, 4, generator=generator) + 0.3
    weight, tokens = torch.randn(4, 10, generator=generator), torch.rand(300, generator=generator) + 0.1
    kept = torch.tensor([0, 2, 3, 7])
    pull = Pull.zeros(4, 4, torch.device("cpu"))
    for part in (slice(start, start + 100) for start in range(0, 300, 100)):
        pull.add(inputs[part][:, kept], what_is_missing(inputs[part], 0.5 * lag[part], weight, kept), tokens[part])
    found, shift = towards_dense(weight[:, kept], pull, 1e-9, biased)
    target = inputs @ weight.T + 0.5 * lag
    design = torch.cat([inputs[:, kept], torch.ones(300, 1)], 1) if biased else inputs[:, kept]
    root = tokens.sqrt()[:, None]
    best = torch.linalg.lstsq((root * design).double(), (root * target).double()).solution.T.float()
    torch.testing.assert_close(found, best[:, :4], rtol=1e-3, atol=1e-3)
    if biased:
        assert shift is not None
        torch.testing.assert_close(shift, best[:, 4], rtol=1e-3, atol=1e-3)


def test_without_a_lag_the_refit_is_plain_least_squares() -> None:
    inputs, weight = torch.randn(100, 8), torch.randn(3, 8)
    pull, kept = Pull.zeros(3, 5, torch.device("cpu")), torch.arange(5)
    pull.add(inputs[:, kept], what_is_missing(inputs, torch.zeros(100, 3), weight, kept), torch.ones(100))
    expected, _ = least_squares(weight, inputs.T @ inputs, kept, 0.01)
    torch.testing.assert_close(towards_dense(weight[:, kept], pull, 0.01)[0], expected, rtol=1e-4, atol=1e-4)


def what_is_missing(inputs: torch.Tensor, lag: torch.Tensor, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """What the columns that go wrote, and the lag that is to be made up for."""
    gone = [column for column in range(weight.shape[1]) if column not in kept.tolist()]
    return inputs[:, gone] @ weight[:, gone].T + lag


def test_tokens_count_relative_to_their_size() -> None:
    stream = torch.randn(3, 8)
    assert token_weights(10 * stream) == pytest.approx(token_weights(stream) / 100)


@pytest.mark.parametrize("family", ["granite", "gemma2", "cohere"])  # a multiplier, norms behind, sublayers beside each other
def test_nothing_that_a_reader_could_make_up_for_is_left(family, tmp_path) -> None:
    folder = tiny_model(family, tmp_path)
    model, dense = (load_model(folder, dtype=torch.float32) for _ in range(2))
    shrinking = ShrinkingModel(model, Checkpoint(folder))
    asked = step(pooled={"remove": 0.3, "spaces": ["ffn"]}, options={"share": 1.0, "ridge": 1e-6})
    make_plan(shrinking, WINDOWS, PruneSlice.model_validate({"steps": [asked]}), Events())
    described = shrinking.geometry.family
    (ours, inputs), (theirs, _) = (_behind_the_last_ffn(one, described) for one in (model, dense))
    inputs = inputs[:, list(shrinking.selection.ffn[-1])]
    lag = (theirs - ours) * token_weights(theirs)[:, None]
    assert (lag.T @ inputs).norm() < 1e-3 * lag.norm() * inputs.norm()
    assert lag.norm() > 0.1 * (theirs * token_weights(theirs)[:, None]).norm()


def _behind_the_last_ffn(model, family):
    """What the stream holds behind the last block, or what its FFN writes before a norm; and what the FFN's reader reads."""
    block, seen = model.get_submodule(family.blocks)[-1], {}
    reader = block.get_submodule(family.reader(Sublayer.FFN).name)
    reader.register_forward_hook(lambda _, inputs, output: seen.update(read=inputs[0], wrote=output))
    block.register_forward_hook(lambda _, __, output: seen.update(after=output))
    with torch.no_grad():
        model(WINDOWS, use_cache=False)
    return seen["after" if family.adds(Sublayer.FFN) else "wrote"].flatten(0, 1), seen["read"].flatten(0, -2)


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_every_family_is_rebuilt_and_gated(family, tmp_path) -> None:
    folder = tiny_model(family, tmp_path / "dense")
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    plan = make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(shots=2)]}), Events())
    assert model.current.decoder_parameters() == pytest.approx(0.6 * model.geometry.decoder_parameters(), rel=0.05)
    assert [done.title[-11:] for done in plan.steps] == ["shot 1 of 2", "shot 2 of 2"]
    assert read_json(rebuilt(tmp_path, folder, plan, Profile.FREE) / "gate.json")["passed"]


def test_whole_sublayers_may_go(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path / "dense", num_hidden_layers=6)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    pooled = {"remove": 0.9, "allow_empty": True}
    plan = make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(pooled=pooled)]}), Events())
    assert any(not units for sublayer in Sublayer for units in model.selection.units(sublayer))
    out = rebuilt(tmp_path, folder, plan, Profile.FREE)
    assert read_json(out / "gate.json")["passed"]
    shapes = Checkpoint(out).geometry.blocks
    assert [shape.ffn for shape in shapes] == [len(units) for units in model.selection.ffn]
    assert any(0 in (shape.ffn, shape.kv_groups) for shape in shapes)


@pytest.mark.parametrize(
    "later",
    [
        step(pooled={"remove": 0.3, "allow_empty": True}, shots=2),
        {"method": "llm_surgeon", "pooled": {"remove": 0.3}, "round_to": 8, "compensation": "least_squares"},
        {"method": "llm_surgeon", "pooled": {"remove": 0.3}, "round_to": 8, "options": {"cost": "published_sum"}},
        {"method": "flap", "budget": {"ffn": {"remove": 0.3}}, "round_to": 8},
        {"method": "cfsp", "budget": {"ffn": {"remove": 0.3}}, "round_to": 8},
        {"method": "wanda_sp", "budget": {"ffn": {"remove": 0.3}}, "round_to": 8},
    ],
    ids=lambda later: later["method"],
)
def test_steps_go_on_where_sublayers_went(later, tmp_path) -> None:
    folder = tiny_model("llama", tmp_path, num_hidden_layers=4)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    for number, block in enumerate(model.selection.blocks):
        model.keep_units(Sublayer.FFN, block, () if number == 1 else model.selection.ffn[block])
        model.keep_units(Sublayer.ATTENTION, block, () if number == 2 else model.selection.kv_groups[block])
    before = model.current.decoder_parameters()
    make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [later]}), Events())
    assert model.current.decoder_parameters() < 0.9 * before
    assert model.selection.ffn[1] == model.selection.kv_groups[2] == ()
    assert model.model(WINDOWS[:1], use_cache=False).logits.isfinite().all()


def test_one_space_alone_leaves_the_other(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(pooled={"remove": 0.3, "spaces": ["ffn"]})]}), Events())
    assert model.current.decoder_parameters() == pytest.approx(0.7 * model.geometry.decoder_parameters(), rel=0.05)
    assert all(now.kv_groups == was.kv_groups for now, was in zip(model.current.blocks, model.geometry.blocks, strict=True))


def test_more_than_can_go_is_refused(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    with pytest.raises(
        TrimlineError, match=r"95.0% of the decoder's parameters is not possible: \d\d\.\d% can go. Ask for less, or set allow_empty"
    ):
        make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(pooled={"remove": 0.95})]}), Events())


def test_a_bias_takes_up_what_always_comes_in(tmp_path) -> None:
    """A channel that says the same of every token costs nothing where the reader has a bias."""
    folder = tiny_model("opt", tmp_path)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    layer = model.model.model.decoder.layers[0]
    with torch.no_grad():
        layer.fc1.weight[5], layer.fc1.bias[5] = 0, 4.0
    ranked = rank(model, WINDOWS, resolve_step(PruneStep.model_validate(step())), Events())[Sublayer.FFN, 0]
    assert ranked.units[-1] == 5
    assert ranked.scores[5] < 0.1 * ranked.scores.median()


def test_the_refit_brings_the_logits_nearer(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path)

    def loss_of(share: float, polish: int) -> float:
        model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
        slice_ = PruneSlice.model_validate({"steps": [step(options={"share": share, "polish": polish})]})
        make_plan(model, WINDOWS, slice_, Events())
        with torch.inference_mode():
            reference = load_model(folder, dtype=torch.float32)(WINDOWS, use_cache=False).logits
            return (model.model(WINDOWS, use_cache=False).logits - reference).square().mean().item()

    assert loss_of(1.0, 1) < loss_of(0.0, 0)


@pytest.mark.parametrize("known", [False, True])
def test_each_block_runs_no_more_than_it_must(known, tmp_path) -> None:
    """Forwards and back for the factors, once cut; the dense one again only where its streams were not noted."""
    folder = tiny_model("llama", tmp_path)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    resolved = resolve_step(PruneStep.model_validate(step(shots=1 if known else 2)))
    measurements = resolved.measure(model, WINDOWS, Events()) if known else None
    calls: list[None] = []
    layer = model.model.model.layers[1]
    layer.self_attn.q_proj.register_forward_hook(lambda *_: calls.append(None))
    list(resolved.run(model, WINDOWS, Events(), measurements))
    assert len(calls) == (2 if known else 6)


@pytest.mark.parametrize("polish", [0, 1])
def test_known_measurements_make_the_same_plan(polish, tmp_path) -> None:
    folder = tiny_model("llama", tmp_path)
    resolved = resolve_step(PruneStep.model_validate(step(options={"polish": polish})))
    models = [ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder)) for _ in range(2)]
    known = resolved.measure(models[0], WINDOWS, Events())
    for model, measurements in zip(models, (known, None), strict=True):
        list(resolved.run(model, WINDOWS, Events(), measurements))
    assert models[0].selection == models[1].selection
    updates = [model.updates() for model in models]
    assert list(updates[0]) == list(updates[1])
    assert all(torch.equal(updates[0][name], updates[1][name]) for name in updates[0])


def test_the_last_reader_is_fitted_on_what_the_finished_blocks_before_it_give(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": [step(options={"share": 1.0, "ridge": 0.1})]}), Events())
    last = len(model.geometry.blocks) - 1
    units = torch.tensor(model.selection.ffn[last])
    inputs, wrote, after = seen_in_block(model.model, last)
    _, _, aim = seen_in_block(load_model(folder, dtype=torch.float32), last)
    weight = Checkpoint(folder).tensor(f"model.layers.{last}.mlp.down_proj.weight").double()[:, units]
    scaled = inputs[:, units].double() * token_weights(aim).double().sqrt()[:, None]
    missing = (aim - (after - wrote)).double() * token_weights(aim).double().sqrt()[:, None] - scaled @ weight.T
    gram = scaled.T @ scaled
    correction = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(len(units)), scaled.T @ missing).T
    found = model.weight(last, "mlp.down_proj")[:, units].double()
    torch.testing.assert_close(found, weight + correction, rtol=1e-3, atol=1e-4)


def seen_in_block(model: torch.nn.Module, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a block's FFN reader reads and writes, and what leaves the block; all tokens as rows."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(f"model.layers.{block}")
    with ExitStack() as hooks:
        hooks.callback(layer.mlp.down_proj.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output))).remove)
        hooks.callback(layer.register_forward_hook(lambda _, __, output: seen.append(output)).remove)
        with torch.inference_mode():
            model(WINDOWS, use_cache=False)
    return tuple(tensor.flatten(0, -2) for tensor in seen)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("noise", "expected"), [(0.0, DAMPINGS[0]), (300.0, DAMPINGS[-1])])
def test_the_ridge_is_the_one_that_errs_least_on_the_other_half(biased: bool, noise: float, expected: float) -> None:
    generator = torch.Generator().manual_seed(5)
    weight, kept = torch.randn(3, 8, generator=generator), torch.tensor([0, 1, 2, 4, 6])
    halves, tokens = [], []
    for _ in range(2):
        inputs, lag = torch.randn(24, 8, generator=generator), noise * torch.randn(24, 3, generator=generator)
        inputs[:, [3, 5, 7]] = inputs[:, [0, 1, 2]]  # what goes follows from what stays
        half = Pull.zeros(3, len(kept), torch.device("cpu"))
        half.add(inputs[:, kept], what_is_missing(inputs, lag, weight, kept), torch.ones(24))
        halves.append(half)
        tokens.append((inputs, lag))
    errors = dict.fromkeys(DAMPINGS, 0.0)
    scales = [gram_scale(half, biased) for half in halves]
    for damping in DAMPINGS:
        for fitted, scale, (inputs, lag) in zip(halves, scales, reversed(tokens), strict=True):
            solved, _ = towards_dense(weight[:, kept], fitted, damping * sum(scales) / scale, biased)
            if biased:
                inputs, lag = inputs - inputs.mean(0), lag - lag.mean(0)
            errors[damping] += (inputs @ weight.T + lag - inputs[:, kept] @ solved.T).square().sum().item()
    assert min(errors, key=lambda damping: errors[damping]) == expected
    for near in (None, *DAMPINGS):  # wherever it begins
        assert best_damping((halves[0], halves[1]), biased, near) == expected


def gram_scale(pull: Pull, biased: bool) -> float:
    """Mean diagonal of the inputs' second moment, central where a bias takes the means up."""
    mean = pull.inputs / pull.weight
    return (pull.gram().diagonal() - (pull.weight * mean.square() if biased else 0)).mean().item()
