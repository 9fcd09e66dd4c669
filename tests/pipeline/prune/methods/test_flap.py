"""FLAP: its statistic, metrics, scores and four structures, against brute force and against the authors' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.architecture.families import Point
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.allocation.pooled import pooled_threshold
from pipeline.prune.methods.flap import FLAP, published_unit_costs, standardised, wifn, wifv
from pipeline.prune.methods.method import BlockView
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_step, resolve_steps
from tests.quick import some_families
from tests.tiny import TINY_FAMILIES, tiny_model

READERS = {"o_proj": "self_attn.o_proj", "down_proj": "mlp.down_proj"}
BOTH = frozenset({Point.HEADS, Point.CHANNELS})
WINDOWS = torch.randint(4, 100, (12, 32), generator=torch.Generator().manual_seed(3))
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "vocab_size": 8,
}


def step_of(**keys: Any) -> PruneStep:
    return PruneStep.model_validate({"method": "flap", "pooled": {"remove": 0.3}} | keys)


def planned(folder: Path, *steps: dict[str, Any], windows: torch.Tensor = WINDOWS, dtype: torch.dtype = torch.float32) -> Plan:
    model = ShrinkingModel(load_model(folder, dtype=dtype), Checkpoint(folder))
    return make_plan(model, windows, PruneSlice.model_validate({"steps": [{"method": "flap"} | step for step in steps]}), Events())


# --- the statistic --------------------------------------------------------------------------------------------------


def brute_fluctuation(inputs: torch.Tensor) -> torch.Tensor:
    """The released rule, sequence by sequence, token by token; inputs (N, S, C)."""
    mean, value = torch.zeros(inputs.shape[2], dtype=torch.float64), torch.zeros(inputs.shape[2], dtype=torch.float64)
    for n, sequence in enumerate(inputs.double()):
        mean = (n * mean + sequence.mean(0)) / (n + 1)
        for token in sequence:
            value += n / (n + 1) * (token - mean) ** 2
    return value / (len(inputs) - 1)


def test_fluctuation_is_the_released_rule_and_variance_is_variance() -> None:
    inputs = torch.randn(7, 9, 5) * torch.tensor([0.1, 1, 3, 10, 0]) + torch.tensor([100.0, 0, -5, 1, 2])
    seen = Fluctuation.zeros(5, torch.device("cpu"))
    for batch in inputs.split(3):
        seen.add(batch)
    torch.testing.assert_close(seen.mean, inputs.mean((0, 1)))
    torch.testing.assert_close(seen.published.double(), brute_fluctuation(inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.variance, inputs.flatten(0, 1).double().var(0).float(), rtol=1e-4, atol=1e-6)


def test_fluctuation_needs_a_second_sequence() -> None:
    seen = Fluctuation.zeros(3, torch.device("cpu"))
    seen.add(torch.randn(1, 4, 3))
    with pytest.raises(TrimlineError, match="two calibration windows"):
        _ = seen.published
    assert (seen.variance > 0).all()


@pytest.mark.parametrize("family", some_families(TINY_FAMILIES))
def test_a_sweep_follows_sequences_in_their_order(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path)
    model, described = load_model(folder, dtype=torch.float32), Checkpoint(folder).geometry.family
    caught: dict[str, list[torch.Tensor]] = {}
    names = {point: described.module(1, described.reading(point)[0].name) for point in BOTH}
    for name in names.values():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: caught.setdefault(name, []).append(args[0]))
    windows = WINDOWS.repeat(20, 1)  # several batches
    (statistics,) = [seen for block, seen in sweep(model, described, windows, Needs(fluctuation=BOTH), Events()) if block == 1]
    for point, name in names.items():
        inputs = torch.cat([batch.reshape(-1, windows.shape[1], batch.shape[-1]) for batch in caught[name]])
        found = statistics.inputs[point].fluctuation
        assert found is not None
        assert found.sequences == len(windows)
        torch.testing.assert_close(found.published.double(), brute_fluctuation(inputs), rtol=1e-3, atol=1e-7)


# --- metrics and scores ---------------------------------------------------------------------------------------------


def test_metrics_against_their_definitions() -> None:
    reader, fluctuation, inputs = torch.randn(4, 6), torch.rand(6), torch.randn(3, 5, 6)
    norm = torch.stack([inputs[:, :, j].square().sum(1).mean().sqrt() for j in range(6)])
    for j in range(6):
        column = reader[:, j].tolist()
        assert wifv(fluctuation, reader)[j].item() == pytest.approx(fluctuation[j].item() * sum(w**2 for w in column), rel=1e-5)
        assert wifn(norm, reader)[j].item() == pytest.approx(norm[j].item() * sum(abs(w) for w in column) / 4, rel=1e-5)


def test_standardised_is_a_z_score_among_what_is_left() -> None:
    metric = torch.tensor([1.0, 2.0, 6.0, 100.0])
    z = standardised(metric, torch.tensor([0, 1, 2]))
    spread = (((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2) ** 0.5
    torch.testing.assert_close(z[:3], torch.tensor([-2 / spread, -1 / spread, 3 / spread]))
    assert standardised(torch.full((3,), 2.0)).tolist() == standardised(torch.ones(1)).tolist() * 3 == [0, 0, 0]


@pytest.mark.parametrize("metric", ["WIFV", "WIFN", "IFV"])
@pytest.mark.parametrize("structure", ["AL-AM", "UL-UM"])
@pytest.mark.parametrize("fluctuation", ["published", "variance"])
def test_scores_of_ffn_channels_and_of_whole_kv_groups(metric: str, structure: str, fluctuation: str, tmp_path: Path) -> None:
    geometry = Checkpoint(tiny_model("llama", tmp_path)).geometry
    options = {"metric": metric, "structure": structure, "fluctuation": fluctuation}
    for space, channels, width in ((Space.FFN, 96, 1), (Space.KV_GROUP, 64, 32)):
        inputs, reader = torch.randn(5, 7, channels), torch.randn(64, channels)
        seen = InputStatistics(inputs.square().sum((0, 1)), inputs.sum((0, 1)), None, Fluctuation.zeros(channels, torch.device("cpu")))
        assert seen.fluctuation is not None
        seen.fluctuation.add(inputs)
        statistics = BlockStatistics(35, 5, inputs={SUBLAYERS[space].point: seen})
        score = FLAP().score(BlockView(statistics, lambda _, w=reader: w, geometry, 0), space, resolve_step(step_of(options=options)))
        vary = brute_fluctuation(inputs) if fluctuation == "published" else inputs.flatten(0, 1).double().var(0)
        norm = inputs.double().square().sum(1).mean(0).sqrt()
        column = {"WIFV": vary * reader.double().square().sum(0), "WIFN": norm * reader.double().abs().mean(0), "IFV": vary}[metric]
        column = column if space is Space.FFN else column**2
        if structure == "UL-UM":
            expected = torch.stack([part.sum() for part in column.split(width)])
        else:
            expected = torch.stack([part.mean() for part in ((column - column.mean()) / column.std()).split(width)])
        torch.testing.assert_close(score.double(), expected, rtol=1e-3, atol=1e-4)


def test_a_second_step_standardises_over_what_the_first_left(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    plan = planned(folder, {"pooled": {"remove": 0.4}, "round_to": 1}, {"pooled": {"remove": 0.2}, "round_to": 1})
    for block in range(4):
        z = plan.scores[f"step1.ffn.{block}"]
        assert len(z) < 96
        assert z.mean().item() == pytest.approx(0, abs=1e-4)
        assert z.std().item() == pytest.approx(1, abs=1e-4)


# --- how many stay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "cost"), [({"head_dim": 128}, 170), ({"head_dim": 64, "num_key_value_heads": 2}, 213), ({}, 10)])
def test_published_unit_costs(keys: dict[str, int], cost: int) -> None:
    assert published_unit_costs(Geometry.from_config(LLAMA | keys)) == {Space.FFN: 1, Space.KV_GROUP: cost}


def test_published_unit_costs_where_the_ffn_has_two_matrices(tmp_path: Path) -> None:
    assert published_unit_costs(Checkpoint(tiny_model("opt", tmp_path)).geometry) == {Space.FFN: 1, Space.KV_GROUP: 4 * 16 / 2}


def test_the_threshold_is_where_the_cost_is_nearest() -> None:
    scores = {Space.FFN: {0: torch.tensor([5.0, 1.0, 3.0])}, Space.KV_GROUP: {0: torch.tensor([4.0, 2.0])}}
    costs = {Space.FFN: 1.0, Space.KV_GROUP: 10.0}
    # Descending 5 4 3 2 1 with running costs 1 11 12 22 23; 0.6 of 23 is 13.8, nearest to 12.
    assert pooled_threshold(scores, costs, 0.6) == 3.0


@pytest.mark.parametrize("costs", ["published", "parameters"])
def test_al_am_keeps_what_scores_above_one_threshold(costs: str, tmp_path: Path) -> None:
    folder = tiny_model("qwen2", tmp_path)
    plan = planned(folder, {"options": {"unit_costs": costs}, "pooled": {"remove": 0.4}, "rounding": "published"})
    threshold = plan.steps[0].facts["threshold"]
    for space, kept in ((Space.FFN, plan.selection.ffn), (Space.KV_GROUP, plan.selection.kv_groups)):
        for block in range(4):
            score = plan.scores[f"step0.{space}.{block}"]
            assert kept[block] == tuple((score > threshold).nonzero().flatten().tolist())
    before = Checkpoint(folder).geometry
    left = plan.geometry(before).decoder_parameters() / before.decoder_parameters()
    assert left == pytest.approx(0.6, abs=0.06)  # a group is 8 % of the model


def test_al_mm_removes_the_given_heads_and_makes_up_the_rest_with_channels(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    options = {"structure": "AL-MM", "remove_heads": 3}
    plan = planned(folder, {"options": options, "pooled": {"remove": 0.4}, "rounding": "published"})
    group, channel = 64 * 16 * (2 * 2 + 2), 64 * 3
    budget = 0.4 * 4 * (2 * group + 96 * channel)
    assert sum(map(len, plan.selection.kv_groups)) == 8 - 3
    assert sum(map(len, plan.selection.ffn)) == 4 * 96 - int((budget - 3 * group) / channel)
    for space, kept in ((Space.FFN, plan.selection.ffn), (Space.KV_GROUP, plan.selection.kv_groups)):
        scores = {block: plan.scores[f"step0.{space}.{block}"] for block in range(4)}
        stay = torch.cat([scores[block][list(kept[block])] for block in range(4)])
        gone = torch.cat([score[[i for i in range(len(score)) if i not in kept[block]]] for block, score in scores.items()])
        assert stay.min() > gone.max()


def test_al_mm_without_heads_to_remove_removes_none(tmp_path: Path) -> None:
    step = {"options": {"structure": "AL-MM", "remove_heads": 0}, "pooled": {"remove": 0.3}, "rounding": "published"}
    plan = planned(tiny_model("llama", tmp_path), step)
    assert sum(map(len, plan.selection.kv_groups)) == 8  # the released code's index runs off the end and removes all


def test_ul_mm_gives_every_block_the_same(tmp_path: Path) -> None:
    options = {"structure": "UL-MM", "remove_heads": 4}
    plan = planned(tiny_model("llama", tmp_path), {"options": options, "pooled": {"remove": 0.5}, "rounding": "published"})
    group, channel = 64 * 16 * (2 * 2 + 2), 64 * 3
    channels = int((0.5 * (2 * group + 96 * channel) - group) / channel)
    assert [len(units) for units in plan.selection.kv_groups] == [1] * 4
    assert [len(units) for units in plan.selection.ffn] == [96 - channels] * 4


@pytest.mark.parametrize(("rounding", "widths"), [("published", 96 - 33), ("tile", 64)])
def test_ul_um_removes_the_same_fraction_of_everything(rounding: str, widths: int, tmp_path: Path) -> None:
    step = {"options": {"structure": "UL-UM"}, "pooled": {"remove": 0.35}, "rounding": rounding, "round_to": 32}
    plan = planned(tiny_model("qwen3", tmp_path), step)
    assert [len(units) for units in plan.selection.kv_groups] == [4 - 1] * 4
    assert [len(units) for units in plan.selection.ffn] == [widths] * 4


def test_blocks_keep_something_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    drastic = {"options": {"structure": "AL-MM", "remove_heads": 7}, "pooled": {"remove": 0.8}, "round_to": 8}
    assert min(len(units) for units in planned(folder, drastic).selection.kv_groups) == 1
    allowed = drastic | {"pooled": {"remove": 0.8, "allow_empty": True}}
    assert sorted(len(units) for units in planned(folder, allowed).selection.kv_groups) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("step", "match"),
    [
        ({"options": {"structure": "AL-MM"}}, "need remove_heads"),
        ({"options": {"remove_heads": 3}}, "need remove_heads"),
        ({"options": {"metric": "wifv"}}, "'metric'"),
        ({"pooled": None, "budget": {"ffn": {"remove": 0.5}}, "options": {"structure": "UL-UM"}}, "both spaces together"),
        ({"pooled": None, "budget": {"ffn": {"remove": 0.5}}, "rounding": "published"}, "both spaces together"),
        ({"pooled": {"remove": 0.2, "spaces": ["ffn"]}, "options": {"structure": "UL-MM", "remove_heads": 1}}, "splits a budget"),
        ({"options": {"structure": "AL-MM", "remove_heads": 1}, "shots": 2}, "at once, not in 2 shots"),
        ({"pooled": None, "budget": {"layer": {"remove": 0.2}}}, "does not score layer"),
    ],
)
def test_steps_refused_before_anything_is_measured(step: dict[str, Any], match: str) -> None:
    with pytest.raises(TrimlineError, match=match):
        resolve_steps(PruneSlice(steps=(step_of(**step),)))


@pytest.mark.parametrize("structure", ["AL-MM", "UL-MM"])
def test_more_heads_than_the_budget_holds(structure: str, tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="alone is more than the budget"):
        planned(tiny_model("llama", tmp_path), {"options": {"structure": structure, "remove_heads": 8}, "pooled": {"remove": 0.1}})


def test_more_heads_than_there_are(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path, intermediate_size=512)
    with pytest.raises(TrimlineError, match="removes 9 units of kv_group where there are 8"):
        planned(folder, {"options": {"structure": "AL-MM", "remove_heads": 9}, "pooled": {"remove": 0.9}})


# --- the authors' own code ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "flap.safetensors")


@pytest.fixture(scope="module")
def their_model(golden: Path, reference: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    scalars = json.loads((golden / "scalars.json").read_text())["flap"]
    folder = tmp_path_factory.mktemp("flap")
    config = scalars["config"] | {"model_type": "llama", "rope_theta": scalars["rope_theta"], "architectures": ["LlamaForCausalLM"]}
    weights = {name.removeprefix("model."): tensor for name, tensor in reference.items() if name.startswith("model.")}
    write_checkpoint(folder, config, weights)
    return folder


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("block", range(4))
def test_their_statistics_from_their_inputs(reference: dict[str, torch.Tensor], block: int, reader: str) -> None:
    inputs = reference[f"layer{block}.{reader}.input"]
    seen = Fluctuation.zeros(inputs.shape[2], torch.device("cpu"))
    for batch in inputs.split(3):
        seen.add(batch)
    weight = reference[f"model.model.layers.{block}.{'self_attn' if reader == 'o_proj' else 'mlp'}.{reader}.weight"].float()
    # Their mean of a sequence is rounded to half precision, and so is their Σ W².
    half = torch.finfo(torch.float16).eps / 2 * inputs.float().mean(1).abs().max().item()
    torch.testing.assert_close(seen.mean, reference[f"layer{block}.{reader}.mean"], rtol=0, atol=half)
    torch.testing.assert_close(seen.published, reference[f"layer{block}.{reader}.fluctuation"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(wifv(seen.published, weight), reference[f"layer{block}.{reader}.wifv"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("case", "structure"), [("AL-AM.p20", "AL-AM"), ("AL-AM.p50", "AL-AM"), ("UL-UM.p50", "UL-UM")])
def test_their_masks_thresholds_and_biases(their_model: Path, reference: dict[str, torch.Tensor], case: str, structure: str) -> None:
    remove = int(case[-2:]) / 100
    step = {"options": {"structure": structure}, "pooled": {"remove": remove}, "rounding": "published", "compensation": "bias"}
    plan = planned(their_model, step, windows=reference["input_ids"], dtype=torch.float16)
    for block in range(4):
        assert plan.selection.kv_groups[block] == tuple(reference[f"{case}.head_mask"][block].nonzero().flatten().tolist())
        assert plan.selection.ffn[block] == tuple(reference[f"{case}.neuron_mask"][block].nonzero().flatten().tolist())
        for reader, name in READERS.items():
            theirs = reference[f"{case}.layer{block}.{reader}.bias"].float()
            ours = plan.updates.get(f"model.layers.{block}.{name}.bias", torch.zeros(72)).float()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=max(3e-3 * theirs.abs().max().item(), 1e-9))
    if structure == "AL-AM":
        assert plan.steps[0].facts["threshold"] == pytest.approx(reference[f"{case}.threshold"].item(), abs=1e-4)


def test_their_standardised_scores(their_model: Path, reference: dict[str, torch.Tensor]) -> None:
    plan = planned(their_model, {"pooled": {"remove": 0.2}, "round_to": 1}, windows=reference["input_ids"], dtype=torch.float16)
    for space, name, tolerance in ((Space.KV_GROUP, "head", 1e-3), (Space.FFN, "neuron", 2e-2)):
        ours = torch.stack([plan.scores[f"step0.{space}.{block}"] for block in range(4)])
        torch.testing.assert_close(ours, reference[f"standardised_{name}_score"], rtol=1e-2, atol=tolerance)
