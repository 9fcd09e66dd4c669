from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.spaces import Space
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.allocate import allocate, blocks_to_keep, channels_to_keep, keep_best
from pipeline.prune.allocation.budget import removed_fraction, removed_in_every_definition
from pipeline.prune.allocation.cfsp import retained_fractions
from pipeline.prune.allocation.counts import nearest_tile, pooled_counts, published_count, tiled_counts
from pipeline.prune.allocation.pooled import unit_sizes, whole_of
from pipeline.prune.recipe import Budget, Pool, PruneStep

WORKED = torch.tensor([0.40, 0.20, 0.10, 0.10, 0.12, 0.30])  # the worked example of the specification, I = 11008
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 100,
}


@pytest.fixture
def geometry() -> Geometry:
    return Geometry.from_config(CONFIG)


def test_worked_example_with_squash() -> None:
    kept = retained_fractions(WORKED, 0.2)
    expected = [0.990476, 0.805207, 0.685745, 0.685745, 0.705117, 0.927709]
    torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert [published_count(11008, k, 1) for k in kept.tolist()] == [10904, 8864, 7549, 7549, 7762, 10213]
    assert [published_count(11008, k, 128) for k in kept.tolist()] == [10880, 8832, 7552, 7552, 7808, 10240]


def test_worked_example_without_squash() -> None:
    kept = retained_fractions(WORKED, 0.5)
    assert [published_count(11008, k, 1) for k in kept.tolist()] == [10731, 5647, 2369, 2369, 2901, 9009]
    assert [published_count(11008, k, 128) for k in kept.tolist()] == [10752, 5632, 2432, 2432, 2944, 8960]


def test_zero_sharpness_is_uniform() -> None:
    torch.testing.assert_close(retained_fractions(WORKED, 0.3, sharpness=0.0), torch.full((6,), 0.7, dtype=torch.float64))


@given(
    distances=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
    remove=st.floats(0.0, 0.95),
    sharpness=st.floats(0.0, 200.0),
)
def test_fractions_keep_their_mean_and_stay_below_one(distances: list[float], remove: float, sharpness: float) -> None:
    kept = retained_fractions(torch.tensor(distances), remove, sharpness)
    assert kept.mean().item() == pytest.approx(1 - remove)
    assert kept.max().item() <= max(1.0, 1 - remove) + 1e-9
    assert kept.min().item() >= -1e-12


def test_published_rounding_keeps_a_tile_where_the_original_would_keep_everything() -> None:
    assert published_count(1536, 0.01, 128) == 128
    assert published_count(200, 0.999, 128) == 200


@given(
    fractions=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=32),
    width=st.sampled_from([256, 1000, 1536]),
    tile=st.sampled_from([1, 32, 64, 128]),
)
def test_tiled_counts_keep_the_budget(fractions: list[float], width: int, tile: int) -> None:
    widths = [width] * len(fractions)
    target = sum(width * fraction for fraction in fractions)
    if target < tile * len(fractions) - tile / 2:
        with pytest.raises(TrimlineError, match="less than one tile"):
            tiled_counts(widths, fractions, tile)
        return
    counts = tiled_counts(widths, fractions, tile)
    assert all(tile <= count <= width and (count % tile == 0 or count == width) for count in counts)
    # A block that keeps all of an odd width can shift the sum by less than a tile more.
    assert abs(sum(counts) - target) <= tile / 2 + (0 if width % tile == 0 else tile)


def test_nearest_tile_keeps_blocks_alike_and_refuses_a_wide_tile() -> None:
    assert nearest_tile(1536, 0.7, 64) == 1088
    assert nearest_tile(1536, 0.001, 64) == 64
    with pytest.raises(TrimlineError, match="wider than"):
        nearest_tile(48, 0.5, 64)


def test_pooled_counts_standardise_and_guarantee_a_minimum() -> None:
    strong = torch.tensor([1000.0, 2000.0, 3000.0, 4000.0])
    weak = torch.tensor([0.1, 0.2, 0.3, 0.4])  # the same z-scores: scale must not matter
    assert pooled_counts([strong, weak], keep=4, minimum=1) == [2, 2]
    flat_and_peaked = [torch.tensor([5.0, 5.0, 5.0, 5.0]), torch.tensor([0.0, 0.0, 0.0, 9.0])]
    assert pooled_counts(flat_and_peaked, keep=4, minimum=1) == [3, 1]
    assert min(pooled_counts(flat_and_peaked, keep=2, minimum=1)) == 1


def test_keep_best_is_sorted_and_prefers_the_lower_index_among_equals() -> None:
    assert keep_best(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 2]


def test_budgets_of_parameters_and_flops(geometry: Geometry) -> None:
    ffn = geometry.with_blocks(tuple(BlockShape(0, block.kv_groups) for block in geometry.blocks))
    share = 1 - ffn.decoder_parameters() / geometry.decoder_parameters()
    fraction = removed_fraction(Budget(remove=0.2, of="parameters"), Space.FFN, geometry)
    assert fraction == pytest.approx(0.2 / share)
    assert removed_fraction(Budget(remove=0.2, of="flops", context=1000), Space.FFN, geometry) > fraction
    with pytest.raises(TrimlineError, match="cannot be met"):
        removed_fraction(Budget(remove=0.9, of="parameters"), Space.FFN, geometry)


def test_every_definition_of_what_was_removed(geometry: Geometry) -> None:
    half = geometry.with_blocks(tuple(BlockShape(128, 1) for _ in geometry.blocks[:3]))
    removed = removed_in_every_definition(geometry, half)
    assert removed["ffn_channels"] == pytest.approx(1 - 3 * 128 / (4 * 256))
    assert removed["kv_groups"] == pytest.approx(1 - 3 / 8)
    assert removed["blocks"] == pytest.approx(0.25)
    assert removed["decoder_parameters"] == pytest.approx(1 - 3 / 8)
    assert 0 < removed["parameters"] < removed["decoder_parameters"]


@pytest.mark.parametrize(
    ("keep", "words"), [((64, 64), "sizes for 2 blocks"), (1000, "cannot keep 1000"), ((64, 64, 64, 300), "Block 3 cannot keep 300")]
)
def test_given_sizes_are_checked(geometry: Geometry, keep: int | tuple[int, ...], words: str) -> None:
    step = PruneStep(budget={Space.FFN: Budget(keep=keep)})
    with pytest.raises(TrimlineError, match=words):
        allocate(step, Space.FFN, "uniform", geometry, [], None)


def test_a_coarse_budget_that_cannot_be_met_says_what_could(geometry: Geometry) -> None:
    step = PruneStep(method="cfsp_extended", budget={Space.KV_GROUP: Budget(remove=0.2)})
    with pytest.raises(TrimlineError, match="Ask for one of 0.000, 0.500"):
        allocate(step, Space.KV_GROUP, "uniform", geometry, [torch.zeros(2)] * 4, None)


def test_cfsps_rule_meets_the_budget_over_units_where_widths_differ_already(geometry: Geometry) -> None:
    uneven = geometry.with_blocks(tuple(BlockShape(ffn, 2) for ffn in (256, 64, 192, 32)))
    step = PruneStep(budget={Space.FFN: Budget(remove=0.5)}, round_to=1)
    scores = [torch.rand(block.ffn) for block in uneven.blocks]
    found = allocate(step, Space.FFN, "cfsp", uneven, scores, torch.tensor([0.1, 0.5, 0.1, 0.4]))
    assert sum(found.counts) == pytest.approx(0.5 * 544, abs=1)
    assert all(count <= block.ffn for count, block in zip(found.counts, uneven.blocks, strict=True))


def test_no_block_keeps_more_than_it_has() -> None:
    assert nearest_tile(100, 1.0, 64) == 100  # not two tiles
    assert tiled_counts([100, 100], [1.0, 1.0], 64) == [100, 100]
    assert published_count(100, 1.0, 1) == published_count(100, 1.0, 128) == 100


def test_a_block_that_is_important_enough_keeps_all_of_it_and_the_others_share_the_rest(geometry: Geometry) -> None:
    uneven = geometry.with_blocks(tuple(BlockShape(ffn, 2) for ffn in (256, 16, 128, 128)))
    step = PruneStep(budget={Space.FFN: Budget(remove=0.3)}, round_to=1)
    distances = torch.tensor([0.1, 0.5, 0.1, 0.2])
    found = allocate(step, Space.FFN, "cfsp", uneven, [torch.rand(block.ffn) for block in uneven.blocks], distances)
    fractions, wanted = found.facts["retained fractions"], retained_fractions(distances, 0.3).tolist()
    assert fractions[1] == 1.0 == max(fractions)
    assert sum(f * block.ffn for f, block in zip(fractions, uneven.blocks, strict=True)) == pytest.approx(0.7 * 528)
    assert fractions[0] / fractions[2] == pytest.approx(wanted[0] / wanted[2])
    assert found.counts[1] == 16


def test_sizes_are_the_nearest_and_not_the_next_below(geometry: Geometry) -> None:
    assert blocks_to_keep(Budget(remove=0.26), geometry) == 3  # 2.96 of 4
    groups = Geometry.from_config(CONFIG | {"num_key_value_heads": 4})
    step = PruneStep(method="cfsp_extended", budget={Space.KV_GROUP: Budget(remove=0.26)})
    assert allocate(step, Space.KV_GROUP, "uniform", groups, [torch.zeros(4)] * 4, None).counts == (3, 3, 3, 3)
    scores = [torch.arange(256.0)] * 4
    pooled = allocate(PruneStep(budget={Space.FFN: Budget(remove=0.1)}, round_to=1), Space.FFN, "global", geometry, scores, None)
    assert sum(pooled.counts) == 922  # 921.6 of 1024
    assert channels_to_keep(Budget(remove=0.26), geometry, 16) == 48  # 47.36 of 64


def test_among_blocks_alike_the_first_keeps_more() -> None:
    assert tiled_counts([256, 256], [0.75, 0.75], 128) == [256, 128]
    assert tiled_counts([256] * 3, [16 / 256, 0.5, 0.5], 64) == [64, 128, 64]  # the last gives back what the first may not lose
    assert pooled_counts([torch.ones(2), torch.ones(2)], keep=3, minimum=1) == [2, 1]


def test_the_block_furthest_above_its_share_gives_back() -> None:
    """Two of four have less of a share than the one tile that they keep; of the others one is 1 below its share and one is 62."""
    assert tiled_counts([256] * 4, [share / 256 for share in (1, 1, 129, 190)], 64) == [64, 64, 64, 128]


def test_z_scores_divide_by_the_unbiased_deviation() -> None:
    """Blocks of 3 and 11 units: 0.577 and 0.603 are 0.707 and 0.632 by the biased one, and the other unit would stay."""
    assert pooled_counts([torch.tensor([0.0, 1.0, 1.0]), torch.arange(11.0)], keep=5, minimum=1) == [1, 4]


def test_flops_are_those_at_the_context_of_the_budget(geometry: Geometry) -> None:
    half = geometry.with_blocks(tuple(BlockShape(block.ffn, 1) for block in geometry.blocks))
    for context in (1, 4096):
        without = geometry.with_blocks(tuple(BlockShape(block.ffn, 0) for block in geometry.blocks))
        share = 1 - without.decoder_flops(context) / geometry.decoder_flops(context)
        budget = Budget(remove=0.1, of="flops", context=context)
        assert removed_fraction(budget, Space.KV_GROUP, geometry) == pytest.approx(0.1 / share)
        assert removed_in_every_definition(geometry, half, context)["decoder_flops"] == pytest.approx(share / 2)
        pool = Pool(remove=0.1, of="flops", context=context)
        assert whole_of(geometry, pool) == geometry.decoder_flops(context)
        sizes, block = unit_sizes(geometry, pool), geometry.blocks[0]
        both = block.ffn * sizes[Space.FFN] + block.kv_groups * sizes[Space.KV_GROUP]
        assert both == pytest.approx(geometry.block_flops(block, context))
