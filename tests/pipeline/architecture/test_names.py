"""Names in artefacts: as they have always been written, and read back into what they were made of."""

from __future__ import annotations

import pytest

from pipeline.architecture.families import Point, Sublayer
from pipeline.architecture.names import (
    KEYED_BY,
    curve_name,
    curve_named,
    first_scores_name,
    first_scores_named,
    gradient_name,
    gradient_named,
    statistic_name,
    statistic_named,
    step_scores_name,
    units_name,
    units_named,
)
from pipeline.architecture.spaces import SUBLAYERS, IndexSet, Space, per_space


def test_names_are_those_of_every_artefact_so_far() -> None:
    channels, groups = IndexSet(Space.FFN, 3), IndexSet(Space.KV_GROUP, 12)
    assert [units_name(*channels), units_name(*groups), units_name(Space.LAYER)] == ["ffn.3", "kv_group.12", "layer"]
    assert step_scores_name(0, channels) == "step0.ffn.3"
    assert first_scores_name(groups) == "scores.kv_group.12"
    assert statistic_name(3, Point.CHANNELS, "squares") == "3.channels.squares"
    assert [curve_name(channels, "units"), curve_name(groups, "errors")] == ["ffn.3.units", "attention.12.errors"]
    assert gradient_name("squares", "mlp.down_proj") == "squares/mlp.down_proj"


@pytest.mark.parametrize("space", Space)
@pytest.mark.parametrize("block", [0, 31])
def test_units_and_their_scores_are_read_back(space: Space, block: int) -> None:
    units = IndexSet(space, block)
    assert units_named(units_name(space, block)) == (space, block)
    assert units_named(units_name(space)) == (space, None)
    assert first_scores_named(first_scores_name(units)) == units


def test_statistics_curves_and_gradients_are_read_back() -> None:
    for point in Point:
        assert statistic_named(statistic_name(11, point, "upper")) == (11, point, "upper")
        assert first_scores_named(statistic_name(11, point, "upper")) is None
    for space in SUBLAYERS:
        assert curve_named(curve_name(IndexSet(space, 5), "units")) == (IndexSet(space, 5), "units")
    keys = {str: "self_attn.q_proj", Point: Point.HEADS, Sublayer: Sublayer.ATTENTION}
    for kind, keyed_by in KEYED_BY.items():
        assert gradient_named(gradient_name(kind, keys[keyed_by])) == (kind, keys[keyed_by])
        assert type(gradient_named(gradient_name(kind, keys[keyed_by]))[1]) is keyed_by


@pytest.mark.parametrize("name", ["rows.3", "ffn.x", "ffn.", ""])
def test_what_names_no_units_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid Space|invalid literal"):
        units_named(name)


def test_scores_of_no_block_are_refused() -> None:
    with pytest.raises(ValueError, match="names no block"):
        first_scores_named("scores.ffn")


def test_values_per_space_keep_their_order() -> None:
    by_set = {IndexSet(Space.KV_GROUP, 2): 1, IndexSet(Space.FFN, 2): 5, IndexSet(Space.KV_GROUP, 0): 3}
    assert per_space(by_set) == {Space.KV_GROUP: [1, 3], Space.FFN: [5]}
