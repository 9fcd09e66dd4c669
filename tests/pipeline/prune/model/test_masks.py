"""Masks from scores against loops over every row and every group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import TrimlineError
from pipeline.prune.model.masks import Pattern, n_m, per_matrix, per_row, row_mask, smallest

PATTERNS = ["1:2", "2:4", "4:8", "3:4", "1:5", "7:10"]


def scores(rows: int = 6, columns: int = 40, levels: int = 9) -> torch.Tensor:
    """Few different values, so that many are equal."""
    return torch.randint(levels, (rows, columns), generator=torch.Generator().manual_seed(rows * columns + levels)).float()


def brute(values: list[float], count: int) -> list[bool]:
    """The first ``count`` of the places in order of value, then of place."""
    gone = sorted(range(len(values)), key=lambda place: (values[place], place))[:count]
    return [place in gone for place in range(len(values))]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.29, 0.5, 0.77, 0.999])
def test_per_row(fraction: float) -> None:
    found = per_row(scores(), fraction)
    assert found.tolist() == [brute(row, int(40 * fraction)) for row in scores().tolist()]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.999])
def test_per_matrix(fraction: float) -> None:
    found = per_matrix(scores(), fraction)
    assert found.shape == (6, 40)
    assert found.flatten().tolist() == brute(scores().flatten().tolist(), int(240 * fraction))


@pytest.mark.parametrize("text", PATTERNS)
def test_n_m(text: str) -> None:
    pattern = Pattern.parse(text)
    found = n_m(scores(), pattern.zeros, pattern.group)
    expected = [
        [gone for start in range(0, 40, pattern.group) for gone in brute(row[start : start + pattern.group], pattern.zeros)]
        for row in scores().tolist()
    ]
    assert found.tolist() == expected
    assert torch.equal(row_mask(scores(), pattern, 0.123), found)  # the pattern says how many


def test_counts_may_differ_from_row_to_row() -> None:
    counts = torch.tensor([0, 3, 40, 1, 17, 39])
    found = smallest(scores(), counts[:, None])
    assert found.tolist() == [brute(row, count) for row, count in zip(scores().tolist(), counts.tolist(), strict=True)]


def test_unstructured_means_within_rows() -> None:
    assert torch.equal(row_mask(scores(), Pattern(), 0.3), per_row(scores(), 0.3))


@pytest.mark.parametrize("text", [*PATTERNS, "unstructured"])
def test_a_pattern_says_what_it_was_read_from(text: str) -> None:
    assert str(Pattern.parse(text)) == text


@pytest.mark.parametrize(("text", "fraction"), [("unstructured", None), ("2:4", 0.5), ("1:4", 0.25), ("3:4", 0.75)])
def test_fraction_of_a_pattern(text: str, fraction: float | None) -> None:
    assert Pattern.parse(text).fraction == fraction


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":4", "4:2", "4:4", "0:4", "2:4:8", "-2:4", "2.0:4", " 2:4", "2:4\n", "٢:٤", "1:4096", "structured"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(TrimlineError, match=r"no pattern of zeros\. Write unstructured, or n:m"):
        Pattern.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        pattern = Pattern.parse(text)
    except TrimlineError:
        return
    assert pattern == Pattern() or 0 < pattern.zeros < pattern.group


def test_groups_must_fit() -> None:
    with pytest.raises(TrimlineError, match=r"30 inputs.*not a multiple of 4, which the pattern 2:4 needs\. Keep a multiple of 4"):
        n_m(scores(2, 30), 2, 4)
    with pytest.raises(TrimlineError, match="blocks.7.down_proj has 30 inputs"):
        Pattern.parse("2:4").check_width(30, "blocks.7.down_proj")
    Pattern.parse("unstructured").check_width(30, "anything")
