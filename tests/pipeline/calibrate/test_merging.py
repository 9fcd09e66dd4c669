"""Statistics of parts of the windows, merged, against one pass over all of them; what does not merge is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.architecture.families import Point, Sublayer
from pipeline.calibrate.fluctuation import Fluctuation
from pipeline.calibrate.gradients import GradientNeeds, gradient_sweep
from pipeline.calibrate.merging import demand_merged, merge_gradients, merge_statistics, why_not_merged
from pipeline.calibrate.needs import Needs
from pipeline.calibrate.statistics import BlockStatistics, InputStatistics
from pipeline.calibrate.sweep import sweep
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.measure import measure, measured_part
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.sharding import gradient_measurements, gradients_of, measure_part, statistics_part, why_whole
from pipeline.prune.stage import prune
from tests.tiny import TINY_FAMILIES, tiny_model

EVERY = frozenset(Point)
WINDOWS = torch.randint(4, 100, (7, 24), generator=torch.Generator().manual_seed(3))
OPTIONS = RunOptions(dtype="float32", threads=1)
TOLERANCE = 1e-5


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_sums_over_tokens_merge(family: str, parts: int, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path)
    model, described = load_model(folder), Checkpoint(folder).geometry.family
    needs = Needs(distance=True, squares=EVERY, gram=EVERY)
    whole = dict(sweep(model, described, WINDOWS, needs, Events()))
    pieces = [dict(sweep(model, described, some, needs, Events())) for some in WINDOWS.tensor_split(parts)]
    for block, expected in whole.items():
        found = merge_statistics([piece[block] for piece in pieces])
        assert (found.tokens, found.sequences) == (WINDOWS.numel(), len(WINDOWS))
        assert found.distance == pytest.approx(expected.distance, rel=TOLERANCE)
        assert found.influence == pytest.approx(expected.influence, rel=TOLERANCE)
        for point, inputs in expected.inputs.items():
            assert relative(found.inputs[point].squares, inputs.squares) < TOLERANCE
            assert relative(found.inputs[point].total, inputs.total) < TOLERANCE
            assert relative(found.inputs[point].gram(), inputs.gram()) < TOLERANCE


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_gradients_merge(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path)
    model, described = load_model(folder), Checkpoint(folder).geometry.family
    names = frozenset(linear.name for linear in described.linears)
    needs = GradientNeeds(weights=names, kronecker=names, masks=frozenset(Sublayer))
    whole = dict(gradient_sweep(model, described, WINDOWS, needs, Events()))
    pieces = [dict(gradient_sweep(model, described, some, needs, Events())) for some in WINDOWS.tensor_split(3)]
    for block, expected in whole.items():
        found = merge_gradients([piece[block] for piece in pieces])
        assert (found.tokens, found.sequences) == (WINDOWS.numel(), len(WINDOWS))
        for kind in ("absolute", "squares", "outputs", "inputs", "totals", "masks"):
            ours, theirs = getattr(found, kind), getattr(expected, kind)
            assert ours.keys() == theirs.keys() != set()
            assert max(relative(ours[key], theirs[key]) for key in theirs) < TOLERANCE, kind


def test_what_is_no_sum_is_refused() -> None:
    fluctuation, half = Needs(fluctuation=EVERY), Needs(gradients=GradientNeeds(weights=frozenset({"q"}), half=True))
    assert "in their order" in why_not_merged(fluctuation)
    assert "rounds" in why_not_merged(half)
    assert why_not_merged(Needs(distance=True, squares=EVERY, gram=EVERY)) == ""
    for needs in (fluctuation, half):
        with pytest.raises(TrimlineError, match="do not merge"):
            demand_merged(needs)
    inputs = replace(InputStatistics.zeros(4, False, torch.device("cpu")), fluctuation=Fluctuation.zeros(4, torch.device("cpu")))
    with pytest.raises(TrimlineError, match="do not merge"):
        merge_statistics([BlockStatistics(inputs={Point.HEADS: inputs})] * 2)


def test_a_merged_fluctuation_would_be_wrong() -> None:
    """The refusal has a reason: what parts know does not determine it."""
    rows = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(6.0)[:, None, None]
    whole, first, second = (Fluctuation.zeros(3, torch.device("cpu")) for _ in range(3))
    whole.add(rows)
    first.add(rows[:3])
    second.add(rows[3:])
    assert relative(first.between + second.between, whole.between) > 0.1


def test_parts_that_differ_are_no_parts_of_one_thing() -> None:
    inputs = InputStatistics.zeros(4, True, torch.device("cpu"))
    one, other = BlockStatistics(inputs={Point.HEADS: inputs}), BlockStatistics(inputs={Point.CHANNELS: inputs})
    with pytest.raises(ValueError, match="different"):
        merge_statistics([one, other])
    without = BlockStatistics(inputs={Point.HEADS: InputStatistics.zeros(4, False, torch.device("cpu"))})
    with pytest.raises(ValueError, match="Gram"):
        merge_statistics([one, without])
    with pytest.raises(ValueError, match="nothing"):
        merge_statistics([])


def test_gradients_survive_the_disk(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model")
    model, described = load_model(folder), Checkpoint(folder).geometry.family
    needs = GradientNeeds(weights=frozenset({"mlp.down_proj"}), kronecker=frozenset({"self_attn.o_proj"}), masks=frozenset(Sublayer))
    for _, gradients in gradient_sweep(model, described, WINDOWS, needs, Events()):
        again = gradients_of(gradient_measurements(gradients))
        for kind in ("absolute", "squares", "outputs", "inputs", "totals", "masks"):
            ours, theirs = getattr(again, kind), getattr(gradients, kind)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


STEPS = {
    "cfsp": {"method": "cfsp", "compensation": "least_squares"},
    "wanda_sp": {"method": "wanda_sp", "compensation": "bias"},
    "gblm": {"method": "gblm"},
    "llm_surgeon": {"method": "llm_surgeon"},
    "sequential": {"method": "cfsp", "sequential": True, "compensation": "least_squares"},
}


def sliced(step: dict[str, object], remove: float = 0.5) -> PruneSlice:
    tokens = WINDOWS.tolist()
    whole = {"budget": {"ffn": {"remove": remove}}, "round_to": 8} | step
    return PruneSlice.model_validate({"calibration": {"token_ids": tokens}, "steps": [whole]})


@pytest.mark.parametrize("name", STEPS)
def test_a_plan_from_parts_is_the_plan(name: str, tmp_path: Path) -> None:
    recipe = sliced(STEPS[name])
    source = tiny_model("llama", tmp_path / "model")
    assert why_whole(recipe) == ""
    parts = []
    for number in range(3):
        parts.append(tmp_path / f"part{number}")
        parts[-1].mkdir()
        measure_part(source, tmp_path, recipe, (number, 3), OPTIONS, parts[-1], Events())
    for place in ("merged", "apart", "whole"):
        (tmp_path / place).mkdir()
    assert measured_part(recipe, Checkpoint(source).geometry) is not None
    measure(source, tmp_path, recipe, OPTIONS, tmp_path / "merged", Events(), parts)
    prune(source, tmp_path, recipe, OPTIONS, tmp_path / "apart", Events(), tmp_path / "merged")
    prune(source, tmp_path, recipe, OPTIONS, tmp_path / "whole", Events())
    found, expected = Plan.read(tmp_path / "apart"), Plan.read(tmp_path / "whole")
    assert found.selection == expected.selection
    for key, score in expected.scores.items():
        assert relative(found.scores[key], score) < TOLERANCE
    for key, update in expected.updates.items():
        assert relative(found.updates[key].float(), update.float()) < 1e-3  # solved for, so rounding is amplified


def test_methods_that_need_the_same_statistics_share_them() -> None:
    assert statistics_part(sliced({"method": "cfsp"}, 0.2)) == statistics_part(sliced({"method": "cfsp"}, 0.4))
    assert statistics_part(sliced({"method": "cfsp"})) != statistics_part(sliced({"method": "cfsp", "compensation": "least_squares"}))


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"method": "flap"}, "in their order"),
        ({"method": "gblm", "options": {"accumulation": "published"}}, "rounds its sum"),
        ({"method": "trimline", "budget": {}, "pooled": {"remove": 0.3}}, "trimline measures as it goes"),
        ({"method": "laco", "budget": {"layer": {"keep": 2}}}, "laco measures as it goes"),
        ({"method": "sparsegpt", "budget": {"weight": {"remove": 0.5}}}, "sparsegpt measures as it goes"),
    ],
)
def test_steps_that_cannot_be_measured_in_parts_say_why(step: dict[str, object], why: str) -> None:
    assert why in why_whole(sliced(step))


def test_statistics_that_do_not_merge_are_not_measured_in_parts(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "model")
    with pytest.raises(TrimlineError, match="do not merge"):
        measure_part(source, tmp_path, sliced({"method": "flap"}), (0, 2), OPTIONS, tmp_path, Events())


def test_more_parts_than_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="7 windows, which do not make 8 parts"):
        measure_part(tiny_model("llama", tmp_path / "m"), tmp_path, sliced(STEPS["cfsp"]), (0, 8), OPTIONS, tmp_path, Events())
