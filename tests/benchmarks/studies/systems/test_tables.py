"""The results command's tables, verdicts and plot, from records and speeds that are made up here."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.formulas.statistics import Ratio, paired_difference, paired_ratio
from benchmarks.recipe import PHASES, BenchmarkSlice, Workload
from benchmarks.results.cells import interval
from benchmarks.results.document import Results
from benchmarks.studies.systems.plot import plot
from benchmarks.studies.systems.speed import WORKLOADS, Speeds, openings
from benchmarks.studies.systems.systems import OURS, OURS_FFN
from benchmarks.studies.systems.tables import NOT_RESOLVED, AgainstDense, ByPhase, line, number, results_table
from benchmarks.studies.systems.verdicts import MISSED, REACHED, at_the_same_size, verdicts
from tests.benchmarks.results.sample_results import comparison_record, results


def test_a_paired_difference_is_the_paired_t_test() -> None:
    chance = np.random.default_rng(0)
    first = chance.normal(3.0, 1.0, 20)
    second = first + chance.normal(0.1, 0.2, 20)
    found, known = paired_difference(first.tolist(), second.tolist()), ttest_rel(second, first).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx(((second - first).mean(), known.low, known.high))
    for bad in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match="no pairs"):
            paired_difference([1.0], bad)


def record(system: str, size: str, losses: list[float], **more: Any) -> dict[str, Any]:
    mean = sum(losses) / len(losses)
    return {
        "name": f"{system}-{size}",
        "system": system,
        "title": system.title(),
        "size": size,
        "own": "some of it",
        "parameters": 90_000_000,
        "removed": {"decoder_parameters": 0.2},
        "perplexity": {"perplexity": math.exp(mean), "standard_error": 0.5, "window_losses": losses},
        "cost": {"wall": 70.4, "processor": 100.2, "peak_anonymous": 2**30},
    } | more


def compared(value: float, holds: bool = True) -> ByPhase:
    ratio = Ratio(value, value - 0.02, value + 0.02, 30, value, value - 0.02, value + 0.02, 6)
    return dict.fromkeys(PHASES, AgainstDense(ratio, holds))


DENSE_ROW = record("dense", "–", [3.0, 3.2, 3.4], cost=None, own="")
RECORDS = [
    DENSE_ROW,
    record("cfsp", "20 %", [3.5, 3.8, 3.9]),
    record("flap", "20 %", [3.2, 3.39, 3.62]),
    record("laco", "20 %", [3.31, 3.5, 3.7]),
    record("fast", "20 %", [3.9, 3.9, 3.9]),
    record("cfsp", "30 %", [9.0, 9.1, 9.2]),
    record(OURS, "20 %", [3.2, 3.4, 3.6]),
    record(OURS, "30 %", [3.3, 3.52, 3.69], parameters=80_000_000),
]
SPEED = {"cfsp-20 %": 1.15, "flap-20 %": 1.2, "laco-20 %": 1.25, "fast-20 %": 1.5, "cfsp-30 %": 1.3}
SPEED |= {f"{OURS}-20 %": 1.2, f"{OURS}-30 %": 1.35}
OURS_20, OURS_30 = (f"{record['title']}, {record['size']}" for record in RECORDS[-2:])
SPEEDS = {name: compared(value) for name, value in SPEED.items()}


def test_verdicts_take_our_largest_row_that_is_as_fast() -> None:
    found = {cells[0]: (cells[2], cells[-1]) for cells in verdicts(RECORDS, Speeds(SPEEDS), ["20 %"])}
    assert found == {
        "Cfsp, 20 %": (OURS_20, REACHED),
        "Flap, 20 %": (OURS_20, NOT_RESOLVED),  # differences of both signs
        "Laco, 20 %": (OURS_30, NOT_RESOLVED),  # the slower row would have won, and is too slow
        "Fast, 20 %": ("none is as fast", NOT_RESOLVED),
    }
    worse = [*RECORDS[:-2], record(OURS, "20 %", [4.0, 4.3, 4.4]), RECORDS[-1]]
    assert verdicts(worse, Speeds(SPEEDS), ["20 %"])[0][-1] == MISSED


def test_rows_of_one_size_are_set_against_ours() -> None:
    lines = at_the_same_size(RECORDS, Speeds(SPEEDS), ["20 %", "30 %"])
    found = {name: margin for name, _, margin, _ in lines}
    assert {speed for *_, speed in lines} == {"not in one run"}
    assert list(found) == ["Cfsp, 20 %", "Flap, 20 %", "Laco, 20 %", "Fast, 20 %", "Cfsp, 30 %"]
    assert found["Cfsp, 20 %"].startswith("-0.3333 [")
    assert at_the_same_size(RECORDS[:-1], Speeds(SPEEDS), ["30 %"]) == []  # none of ours
    zeros = record("wanda", "20 %", [3.0, 3.2, 3.4], zeros=0.2)
    assert at_the_same_size([zeros, *RECORDS], Speeds(SPEEDS), ["20 %", "30 %"]) == lines
    run = run_of({"a": WOBBLE, "b": [step / 1.25 for step in WOBBLE]})
    (line,) = at_the_same_size([RECORDS[3], RECORDS[-2]], Speeds(SPEEDS, [run], models={LACO: "a", OURS_THERE: "b"}), ["20 %"])
    assert line[3].startswith("1.250 [")
    both = at_the_same_size([*RECORDS[:-1], record(OURS_FFN, "20 %", [3.2, 3.5, 3.6])], Speeds(SPEEDS), ["20 %"])
    assert [cells[1] for cells in both if cells[0] == "Cfsp, 20 %"] == [name.title() for name in (OURS, OURS_FFN)]


def run_of(seconds: dict[str, list[float]], holds: bool = True, each: int = 1) -> Results:
    """An interleaved run: seconds of a decode step by model and round, in two steps of unlike length."""
    gaps = {name: [[0.5 * step, 1.5 * step] for step in steps] for name, steps in seconds.items()}
    judged = [comparison_record("a", WORKLOADS["decode"], "decode", control_holds=holds)]
    recipe = BenchmarkSlice(workloads=(Workload(prompt=128, output=17),), rounds_per_opening=each)
    samples = {name: {"prefill": [1.0] * len(found), "gaps": found} for name, found in gaps.items()}
    return results(recipe, {WORKLOADS["decode"]: samples}, comparisons=judged)


OURS_THERE, LACO = f"{OURS}-20 %", "laco-20 %"  # laco is faster than ours by its speed-up over dense, 1.25 against 1.2
WOBBLE = [1.0, 1.1, 0.9] * 9


@pytest.mark.parametrize(
    ("ours", "holds", "chosen"),
    [
        (
            [0.99 * second * (1.04 if number % 2 else 0.98) for number, second in enumerate(WOBBLE)],
            True,
            OURS_20,
        ),  # reaches 1, above and below
        ([1.02 * second for second in WOBBLE], True, OURS_30),  # slower in every round
        ([second * (1.09 if number % 2 else 0.99) for number, second in enumerate(WOBBLE[:8])], True, OURS_30),  # reaches 1, but is 0.96
        ([0.9 * second for second in WOBBLE], False, OURS_30),  # such a run says nothing
    ],
)
def test_rows_of_one_run_are_compared_round_by_round(ours: list[float], holds: bool, chosen: str) -> None:
    keys = {OURS_THERE: "a", LACO: "b"}
    run = run_of({"a": ours, "b": WOBBLE[: len(ours)]}, holds)
    speeds = Speeds(SPEEDS, [run], models=keys)
    cells = next(cells for cells in verdicts(RECORDS, speeds, ["20 %"]) if cells[0].startswith("Laco"))
    assert cells[2] == chosen
    ratio = speeds.decode_ratio(LACO, OURS_THERE)
    assert (ratio is None) is not holds
    if ratio is not None:
        assert ratio == paired_ratio(WOBBLE[: len(ours)], ours)
    assert cells[4] == (interval(ratio) if ratio and chosen == OURS_20 else "not in one run")


def test_runs_that_hold_are_pooled() -> None:
    runs = [
        run_of({"a": WOBBLE[:n], "b": [2 * second for second in WOBBLE[:n]]}, holds) for n, holds in ((5, True), (9, True), (27, False))
    ]
    found = Speeds({}, runs, models={"one": "a", "two": "b"}).decode_ratio("two", "one")
    assert found is not None
    assert (found.value, found.rounds, found.openings) == (pytest.approx(2.0), 14, 14)
    assert Speeds({}, runs).decode_ratio("two", "one") is None


def test_the_rounds_of_one_opening_are_one_value() -> None:
    """The second opening is twice as slow for one of the two, whatever number of rounds it has."""
    steps = [[1.0, 1.1, 1.2], [2.0, 2.2, 2.1], [1.0]]
    run = run_of({"a": [step for opening in steps for step in opening], "b": [1.0] * 7}, each=3)
    assert openings(run, "decode", "a") == [pytest.approx(opening) for opening in steps]
    found = Speeds({}, [run]).decode_ratio("a", "b")
    assert found is not None
    assert (found.value, found.rounds, found.openings) == (pytest.approx((1.1 * 2.1 * 1.0) ** (1 / 3)), 7, 3)


def test_no_verdict_without_a_control_that_holds() -> None:
    speeds = Speeds(SPEEDS | {f"{OURS}-20 %": compared(1.2, holds=False)})
    assert {cells[-1] for cells in verdicts(RECORDS, speeds, ["20 %"])[:2]} == {NOT_RESOLVED}


def test_a_line_has_every_column() -> None:
    against = ttest_rel(*(row["perplexity"]["window_losses"] for row in (RECORDS[1], DENSE_ROW))).confidence_interval(0.95)
    assert line(RECORDS[1], DENSE_ROW, SPEEDS) == [
        "20 %",
        "Cfsp",
        "some of it",
        "20.0 %",
        "90.0 M",
        f"{math.exp(11.2 / 3):.2f} ± 0.50",
        f"{math.exp(0.5333333):.3f} [{math.exp(against.low):.3f}, {math.exp(against.high):.3f}]",
        "1.150 [1.130, 1.170]",
        "1.150 [1.130, 1.170]",
        "100 (70)",
        "1024",
    ]
    assert line(DENSE_ROW, DENSE_ROW, SPEEDS)[2:4] == ["–", "–"]
    assert line(RECORDS[1], DENSE_ROW, {})[-3] == "not timed"
    assert line(record("magnitude", "20 %", [13.0, 13.1, 13.5]), DENSE_ROW, {})[6].startswith("2.2e+04 [")
    assert line(RECORDS[1], DENSE_ROW, {"cfsp-20 %": compared(1.1, holds=False)})[-3].endswith("(not resolved)")
    assert line(RECORDS[1] | {"untimed": "a sentence"}, DENSE_ROW, {})[-3] == "failed, see below"
    assert line(record("wanda", "2:4", [3.0, 3.2, 3.4], zeros=0.5), DENSE_ROW, {})[3] == "50.0 % zeros"
    assert line(record("wanda", "20 %", [3.0, 3.2, 3.4], zeros=0.2), DENSE_ROW, {})[-3] == "same shapes"
    assert len({row.count("|") for row in results_table(RECORDS, SPEEDS).splitlines()}) == 1
    assert [number(value) for value in (12.3456, 999.0, 1.23456e6)] == ["12.35", "999.00", "1.23e+06"]


def test_a_failed_row_is_as_long_as_the_others() -> None:
    failed = {"name": "x-1", "system": "x", "title": "X", "size": "20 %", "failure": "failed: No | such thing."}
    cells = line(failed, DENSE_ROW, {})
    assert cells[2] == "failed: No \\| such thing."
    assert len(cells) == len(line(DENSE_ROW, DENSE_ROW, {}))


def test_the_plot_has_a_line_per_system_and_marks_what_lies_beyond() -> None:
    drawn = plot(RECORDS, SPEEDS)
    assert drawn is not None
    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    for title in ("Cfsp", "Flap", "Laco", "Fast", "Trimline", "dense", "perplexity"):
        assert texts.count(title) == 1
    assert drawn.count("<circle") == 6  # all but CFSP at 30 %, far above
    assert any(text and text.startswith("▲ above") for text in texts)
    assert plot(RECORDS, {}) is None
