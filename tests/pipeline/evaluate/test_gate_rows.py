"""Which tokens and positions gates read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from pipeline.evaluate.gates import LONGEST_ROW, attention_window, late_positions, row_past_window


@pytest.mark.parametrize(("promised", "length"), [(256, 48), (131072, 48), (10**9, 16), (48, 48), (50, 48), (5, 48), (1, 48)])
def test_late_positions_ascend_from_the_first_to_the_last_promised_one(promised: int, length: int) -> None:
    found = late_positions(promised, length)
    assert len(found) == min(length, promised)
    assert (found[0], found[-1]) == (0, promised - 1)
    assert (found.diff() > 0).all()


def test_late_positions_are_spread_over_the_whole_table() -> None:
    assert late_positions(4096, 48).diff().max() < 4096 // 20
    assert torch.equal(late_positions(4096, 48)[-12:], torch.arange(4084, 4096))


@pytest.mark.parametrize(
    ("family", "given", "window"),
    [
        ("mistral", {"sliding_window": 8}, 8),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 8}, None),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2}, 8),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2, "num_hidden_layers": 2}, None),
        ("phi3", {"sliding_window": 2047}, 2047),
        ("llama", {}, None),
        ("opt", {}, None),
    ],
)
def test_the_window_is_what_transformers_makes_of_the_config(family: str, given: dict[str, object], window: int | None) -> None:
    assert attention_window(AutoConfig.for_model(family, **given)) == window


@pytest.mark.parametrize(
    ("window", "promised", "row"),
    [(8, 256, 16), (250, 256, 256), (255, 256, 256), (256, 256, None), (None, 256, None), (LONGEST_ROW, 10**6, None), (4096, 32768, 4104)],
)
def test_a_row_goes_past_the_window_where_that_shows_and_is_cheap(window: int | None, promised: int, row: int | None) -> None:
    assert row_past_window(window, promised) == row
