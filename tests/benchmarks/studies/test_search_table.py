"""The study of searched sizes: every row can be asked for, and its table pairs a row with what it is compared with."""

from __future__ import annotations

import math

import pytest

from benchmarks.studies.search.rows import COMPARED, ROWS, recipe_of
from benchmarks.studies.search.table import ratio, table
from pipeline.prune.steps import resolve_steps
from pipeline.sources.recipe import CalibrationWindows


def test_every_row_can_be_asked_for_and_is_compared_with_the_same_step_without() -> None:
    for step in filter(None, ROWS.values()):
        assert len(resolve_steps(recipe_of(step, CalibrationWindows(windows=2, window=8)))) == 1
    for name, other in COMPARED.items():
        mine, without = ROWS[name], ROWS[other]
        assert mine is not None
        assert without is not None
        assert {key: value for key, value in mine.items() if key not in ("search", "compensation")} == {
            key: value for key, value in without.items() if key != "compensation"
        }


def record(losses: list[float], **more: object) -> dict[str, object]:
    mean = sum(losses) / len(losses)
    setting = {"calibration": [2, 8], "evaluation": [4, 8], "processor": "one", "threads": 1, "commit": "0" * 40}
    return {"perplexity": math.exp(mean), "standard_error": 0.5, "window_losses": losses, **setting, **more}


def test_the_ratio_is_paired_by_window() -> None:
    plain, better = record([3.0, 5.0, 4.0, 6.0]), record([2.9, 4.9, 3.9, 5.9])
    assert ratio(better, plain) == "0.905 [0.905, 0.905]"
    spread = record([2.8, 5.0, 3.8, 6.0])
    low, high = (float(part) for part in ratio(spread, plain).partition("[")[2].strip("]").split(","))
    assert (low * high) ** 0.5 == pytest.approx(math.exp(-0.1), abs=2e-3)


def test_the_table_says_what_was_found() -> None:
    search = {"evaluations": 9, "tokens": 1234, "generations": 2, "divergence": [1.5, 1.25]}
    cost = {"processor_seconds": {"measure": 3.2, "decide": 40.0}, "removed": {"decoder_parameters": 0.5}}
    shown = table({"cfsp-0.5": record([3.0, 4.0], **cost), "cfsp-0.5-search": record([2.5, 3.5], facts={"search": search}, **cost)})
    assert (
        "| cfsp-0.5-search | 50.0% | 20.09 ± 0.50 | 0.607 [0.607, 0.607] | 9 choices on 1,234 tokens, 2 generations: 1.500 to 1.250"
        in shown
    )
    assert "| 3, 40 |" in shown
    assert "2 windows of 8 tokens" in shown
