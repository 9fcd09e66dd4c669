"""Scores of experts against hand computation, and whole experts of tiny mixtures removed by every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.architecture.families import FAMILIES
from pipeline.calibrate.gradients import gradient_sweep
from pipeline.calibrate.merging import merge_statistics
from pipeline.calibrate.needs import GradientNeeds, Needs
from pipeline.calibrate.routed import RoutedStatistics
from pipeline.calibrate.routed_gradients import moved
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import open_paged
from pipeline.live.routing import forbid
from pipeline.prune.allocation.experts import best_of_groups
from pipeline.prune.methods.reap import reap_score
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import check_spaces, make_plan
from pipeline.prune.steps import resolve_steps
from tests.quick import some_types
from tests.tiny import TINY_MIXTURES, tiny_model

METHODS = ("reap", "frequency", "ean", "man", "expert_loss")
WINDOWS = torch.randint(4, 100, (3, 24), generator=torch.Generator().manual_seed(7))
BLOCK = 1


def recipe(method: str = "reap", **step: object) -> PruneSlice:
    stated = {"method": method, "budget": {"expert": {"remove": 0.25}}} | step
    return PruneSlice.model_validate({"calibration": {"windows": 3, "window": 24}, "steps": [stated]})


def statistics_of(folder: Path, windows: torch.Tensor = WINDOWS) -> RoutedStatistics:
    model, family = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    found = dict(sweep(model, family, windows, Needs(routed=True), Events()))[BLOCK].routed
    assert found is not None
    return found


def test_a_router_of_three_experts_by_hand() -> None:
    """Two tokens, top 2 of three experts: token 0 goes to experts 0 and 1, token 1 to experts 1 and 2."""
    seen = RoutedStatistics.zeros(3, torch.device("cpu"))
    index, weights = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0.6, 0.2], [0.3, 0.1]])
    outputs = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[6.0, 8.0], [0.0, 2.0]]])  # norms 5, 1; 10, 2
    scores = torch.tensor([[0.6, 0.2, 0.2], [0.6, 0.1, 0.3]])
    seen.add(index, weights, outputs, scores)
    assert seen.tokens.tolist() == [1, 2, 1]
    torch.testing.assert_close(seen.norms, torch.tensor([5.0, 3.0, 10.0]))
    torch.testing.assert_close(seen.gates, torch.tensor([0.75, 0.5, 0.75]))
    torch.testing.assert_close(reap_score(seen), torch.tensor([3.75, (0.25 * 1 + 0.25 * 2) / 2, 7.5]))
    torch.testing.assert_close(reap_score(seen, renormalised=False), torch.tensor([3.0, (0.2 * 1 + 0.1 * 2) / 2, 3.0]))


def test_an_expert_that_no_token_chose_scores_nothing() -> None:
    seen = RoutedStatistics.zeros(2, torch.device("cpu"))
    seen.add(torch.tensor([[1]]), torch.ones(1, 1), torch.ones(1, 1, 4), torch.tensor([[0.1, 0.9]]))
    assert reap_score(seen).tolist() == [0.0, 2.0]


def test_of_equal_scores_the_first_stays_and_every_group_keeps_as_many() -> None:
    assert best_of_groups(torch.tensor([1.0, 1.0, 1.0, 1.0]), [0, 0, 0, 0], 2).tolist() == [0, 1]
    score = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0])
    assert best_of_groups(score, [0, 0, 0, 0, 1, 1, 1, 1], 4).tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("name", TINY_MIXTURES)
@torch.no_grad()
def test_statistics_are_those_of_every_token_and_expert_alone(tmp_path: Path, name: str) -> None:
    """Experts are called one token at a time with weight one, on what stock hooks say the block calls them with."""
    folder, found = tiny_model(name, tmp_path), statistics_of(tmp_path)
    model, family = load_model(folder, dtype=torch.float32), FAMILIES[name]
    assert family.mixture is not None
    experts = model.get_submodule(f"{family.blocks}.{BLOCK}").get_submodule(family.mixture.experts)
    called: list[tuple[torch.Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda _, inputs, named: called.append((*inputs, *named.values())), with_kwargs=True)
    model(WINDOWS, use_cache=False)
    handle.remove()
    hidden, index, weights = called[0]
    expected = torch.zeros(4, 8)
    for row, chosen, given in zip(hidden, index.tolist(), weights.tolist(), strict=True):
        for expert, weight in zip(chosen, given, strict=True):
            size = experts(row[None], torch.tensor([[expert]]), torch.ones(1, 1)).norm().item()
            gate = weight / sum(given)
            expected[:, expert] += torch.tensor([1.0, gate, size, gate * size])
    torch.testing.assert_close(torch.stack((found.tokens, found.gates, found.norms, found.gated)), expected, rtol=1e-4, atol=1e-5)


def test_measuring_leaves_what_the_blocks_compute(tmp_path: Path) -> None:
    folder = tiny_model("qwen3_moe", tmp_path)
    model, family = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    with torch.no_grad():
        before = model(WINDOWS, use_cache=False).logits
        last: list[torch.Tensor] = []
        model.model.layers[-1].register_forward_hook(lambda _, __, output: last.append(output))
        list(sweep(model, family, WINDOWS, Needs(routed=True), Events()))
        after = model.lm_head(model.model.norm(last[-1]))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert "forward" not in model.model.layers[0].mlp.experts.__dict__


def test_parts_of_the_text_add_up(tmp_path: Path) -> None:
    folder = tiny_model("olmoe", tmp_path)
    model, family = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    parts = [dict(sweep(model, family, part, Needs(routed=True), Events()))[BLOCK] for part in (WINDOWS[:1], WINDOWS[1:])]
    whole, merged = statistics_of(folder), merge_statistics(parts).routed
    assert merged is not None
    torch.testing.assert_close(torch.stack(merged.tensors()), torch.stack(whole.tensors()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", some_types(TINY_MIXTURES))
def test_what_is_forbidden_is_never_chosen(tmp_path: Path, name: str) -> None:
    folder = tiny_model(name, tmp_path)
    model, family = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    forbid(model, family, {BLOCK: (2, 5)})
    found = dict(sweep(model, family, WINDOWS, Needs(routed=True), Events()))
    here, other = found[BLOCK].routed, found[3].routed
    assert here is not None
    assert other is not None
    assert here.tokens[[2, 5]].tolist() == [0, 0]
    assert here.tokens.sum() == other.tokens.sum() == 2 * WINDOWS.numel()
    assert other.tokens[[2, 5]].sum() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["glm4_moe", "deepseek_v3", "qwen3_next"])
def test_blocks_with_dense_ffns_and_other_mixers_take_no_part(tmp_path: Path, name: str, method: str) -> None:
    checkpoint = Checkpoint(tiny_model(name, tmp_path))
    plan = make_plan(ShrinkingModel(load_model(tmp_path, dtype=torch.float32), checkpoint), WINDOWS, recipe(method), Events())
    kept = [6 if block.experts else 0 for block in checkpoint.geometry.blocks]
    assert [block.experts for block in plan.selection.geometry(checkpoint.geometry).blocks] == kept


@pytest.mark.parametrize("method", METHODS)
def test_the_lowest_scores_go_the_same_number_from_every_block(tmp_path: Path, method: str) -> None:
    checkpoint = Checkpoint(tiny_model("qwen3_moe", tmp_path))
    model = ShrinkingModel(load_model(tmp_path, dtype=torch.float32), checkpoint)
    plan = make_plan(model, WINDOWS, recipe(method), Events())
    assert plan.selection.experts is not None
    for block, kept in enumerate(plan.selection.experts):
        score = plan.scores[f"step0.expert.{block}"]
        gone = sorted(set(range(8)) - set(kept))
        assert len(gone) == 2
        assert score[gone].max() <= score[list(kept)].min()


def test_a_later_step_measures_what_the_earlier_left_in_little_memory_too(tmp_path: Path) -> None:
    folder = tiny_model("qwen2_moe", tmp_path)
    stated = PruneSlice.model_validate(
        {
            "steps": [
                {"method": "ean", "budget": {"expert": {"remove": 0.25}}, "sequential": True},
                {"method": "reap", "budget": {"expert": {"keep": 4}}},
            ]
        }
    )
    options = RunOptions(dtype="float32", threads=1, memory=1)
    paged = make_plan(ShrinkingModel(*_swapped(open_paged(folder, options, torch.float32), Checkpoint(folder))), WINDOWS, stated, Events())
    held = make_plan(ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder)), WINDOWS, stated, Events())
    assert paged.selection == held.selection
    assert {len(kept) for kept in held.selection.experts or ()} == {4}


def _swapped(opened: tuple[nn.Module, object], checkpoint: Checkpoint) -> tuple:
    model, paging = opened
    return model, checkpoint, paging


REFUSED = [
    ("qwen3_moe", {"budget": {"expert": {"keep": 1}}}, "1 experts in every block are too few: 2 are chosen for every token"),
    ("qwen3_moe", {"budget": {"expert": {"keep": 9}}}, "keeps 9 experts of each block, which has 8"),
    ("qwen3_moe", {"budget": {"expert": {"remove": 0.06}}}, "Removing 6% of the experts is not possible with 8"),
    ("qwen3_moe", {"budget": {"expert": {"remove": 0.25, "of": "flops"}}}, "does not change what a token costs"),
    ("qwen3_moe", {"budget": {"expert": {"keep": [6, 6, 5, 6]}}}, "unlike numbers of experts"),
    ("qwen3_moe", {"allocation": "global"}, "its own number of experts"),
    ("qwen3_moe", {"compensation": "bias"}, "experts have none"),
    ("llama", {}, "llama has no experts"),
]


@pytest.mark.parametrize(("name", "step", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_refused_before_anything_is_measured(tmp_path: Path, name: str, step: dict[str, object], message: str) -> None:
    geometry = Checkpoint(tiny_model(name, tmp_path)).geometry
    with pytest.raises(TrimlineError, match=message):
        check_spaces(resolve_steps(recipe(**step)), geometry)


def test_a_mixture_without_a_shared_expert_has_no_ffn_channels_to_lose(tmp_path: Path) -> None:
    geometry = Checkpoint(tiny_model("mixtral", tmp_path)).geometry
    with pytest.raises(TrimlineError, match="all of its FFN is experts"):
        check_spaces(resolve_steps(recipe("magnitude", budget={"ffn": {"remove": 0.5}})), geometry)


def test_shares_of_parameters_count_what_is_stored_and_flops_what_is_chosen(tmp_path: Path) -> None:
    geometry = Checkpoint(tiny_model("qwen3_moe", tmp_path)).geometry
    block = geometry.blocks[0]
    expert = 3 * 64 * 32
    assert geometry.expert_parameters(block) == expert
    assert geometry.decoder_parameters() - geometry.active_parameters() == 4 * 6 * expert


@pytest.mark.parametrize("normalised", [True, False])
def test_what_moves_where_an_expert_leaves_by_routing_again(normalised: bool) -> None:
    """Against the router of four experts, top 2, asked again with −inf for each chosen one."""
    draw = torch.Generator().manual_seed(3)
    logits, values = torch.randn(5, 4, generator=draw), torch.randn(5, 4, generator=draw)

    def routed(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, index = scores.softmax(-1).topk(2, dim=-1)
        return (best / best.sum(-1, keepdim=True) if normalised else best), index

    weights, index = routed(logits)
    before = (weights * values.gather(1, index)).sum(1)
    probabilities = logits.softmax(-1)
    third = probabilities.topk(3, dim=-1).indices[:, 2:]
    found = moved(values.gather(1, index), values.gather(1, third), weights, probabilities, index, third)
    for expert in range(4):
        again, chosen = routed(logits.index_fill(1, torch.tensor([expert]), -torch.inf))
        expected = (again * values.gather(1, chosen)).sum(1) - before
        torch.testing.assert_close(found[:, expert], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe", "gpt_oss"])
def test_the_first_order_is_the_slope_of_the_loss_towards_the_block_without_the_expert(tmp_path: Path, name: str) -> None:
    """The stock model, its last block routed anew by −inf, mixed in a little: the loss moves as the first term says."""
    folder, expert, little = tiny_model(name, tmp_path), 3, 1e-3
    model, geometry = load_model(folder, dtype=torch.float64), Checkpoint(folder).geometry
    family, last = geometry.family, len(geometry.blocks) - 1
    swept = dict(gradient_sweep(model, family, WINDOWS, GradientNeeds(experts=True), Events()))[last]
    mixture = family.mixture
    assert mixture is not None
    experts = model.get_submodule(f"{family.blocks}.{last}").get_submodule(mixture.experts)
    given: list[torch.Tensor] = []

    def loss() -> float:
        with torch.no_grad():
            logits = [model(window[None], use_cache=False).logits[0, :-1] for window in WINDOWS]  # the loss of the class is fp32
            return sum(cross_entropy(found, window[1:]).item() for found, window in zip(logits, WINDOWS, strict=True)) / len(WINDOWS)

    with experts.register_forward_hook(lambda _, __, output: given.append(output)):
        loss()
        forbid(model, family, {last: (expert,)})
        loss()
    half = len(given) // 2
    losses = []
    for step in (-little, little):
        nudged = iter([one + step * (other - one) for one, other in zip(given[:half], given[half:], strict=True)])
        with experts.register_forward_hook(lambda _, __, ___, nudged=nudged: next(nudged)):
            losses.append(loss())
    found = swept.experts["moves"][:, expert].mean().item()
    spread = (WINDOWS.shape[1] * swept.experts["squares"][:, expert]).sqrt().mean().item()  # Σ |m| is at most this
    assert found == pytest.approx((losses[1] - losses[0]) / (2 * little), abs=1e-3 * spread)
    assert found != 0


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_dead_experts_and_a_router_that_tells_none_apart(tmp_path: Path, method: str) -> None:
    """One block's experts write nothing, another's router has the same row for all: scores are finite, and as many stay of every block."""
    model = load_model(tiny_model("qwen3_moe", tmp_path), dtype=torch.float32)
    model.model.layers[0].mlp.experts.down_proj.zero_()
    model.model.layers[1].mlp.gate.weight.fill_(0.1)
    plan = make_plan(ShrinkingModel(model, Checkpoint(tmp_path)), WINDOWS, recipe(method), Events())
    assert {len(kept) for kept in plan.selection.experts or ()} == {6}
    assert all(score.isfinite().all() for score in plan.scores.values())
