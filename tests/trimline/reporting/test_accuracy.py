"""Losses by position and retrieval in the report: what is warned of, and what counts."""

from __future__ import annotations

import dataclasses
import html
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import ttest_rel

from deploy import card
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.evaluate.perplexity import window_readings
from pipeline.evaluate.positions import position_record
from pipeline.live.loading import load_model
from tests.tiny import tiny_model
from tests.trimline.reporting.sample_report import sample
from trimline.comparisons.results import _task_row
from trimline.comparisons.tables import task_table
from trimline.reporting import Measure, render_html, render_markdown
from trimline.reporting.accuracy.positions import part_ends, positions_of, worse_late
from trimline.reporting.accuracy.retrieval import retrieval_rows
from trimline.reporting.data import ByText, ReportData, TaskRow
from trimline.reporting.headline import headline


def losses(late: float, spread: float = 0.02) -> list[list[float]]:
    return [[3.0 + 0.1 * w + (late + spread * (-1) ** w) * (part == 7) for part in range(8)] for w in range(6)]


def text(late: float, spread: float = 0.02, name: str = "news") -> ByText:
    record = {"position_losses": losses(0.0)}, {"position_losses": losses(late, spread)}
    return ByText(name, Measure(20.0), Measure(21.0), positions=positions_of(*record, 1024))


def test_the_interval_pairs_windows():
    dense, pruned = losses(0.0), losses(0.4, 0.1)
    found = positions_of({"position_losses": dense}, {"position_losses": pruned}, 1024)
    assert found.pruned[-1] - found.dense[-1] == pytest.approx(0.4)
    lost = [[b[place] - a[place] for a, b in zip(dense, pruned, strict=True)] for place in (-1, 0)]
    interval = ttest_rel(*lost).confidence_interval(0.95)
    assert (found.later.low, found.later.high) == pytest.approx((interval.low, interval.high))
    assert positions_of({}, {"position_losses": pruned}, 1024) is None
    assert positions_of({"position_losses": dense[:1]}, {"position_losses": pruned[:1]}, 1024).later is None


def test_the_headline_warns_where_the_late_part_lost_far_more():
    data = dataclasses.replace(sample(), by_text=(text(0.05), text(0.4, name="manual")))
    said = "; from token 898 on it loses 0.40 nats a token to dense, where it loses 0.00 at the start of a window (manual)."
    assert said in headline(data)
    for rendered in (render_markdown(data), html.unescape(render_html(data))):
        assert "Loss by position in the window" in rendered
        assert "From token 898 on" in rendered
    assert 'id="plot-positions"' in render_html(data)
    assert "by position" not in render_markdown(sample())


class ForgetsLate(torch.nn.Module):
    """A model that computes something else beyond a position, as one does whose rotary table ends there."""

    def __init__(self, model: torch.nn.Module, reach: int) -> None:
        super().__init__()
        self.model, self.reach = model, reach

    def forward(self, input_ids, **options):
        found = self.model(input_ids=input_ids, **options)
        found.logits[:, self.reach :] = found.logits[:, self.reach :].roll(1, -1) * 8
        return found


def test_a_model_that_is_broken_beyond_a_position_is_seen(tmp_path):
    model = load_model(tiny_model("llama", tmp_path / "model", num_hidden_layers=1))
    windows = torch.randint(4, 64, (6, 65), generator=torch.Generator().manual_seed(0))
    dense, broken = (position_record(window_readings(one, windows, Events())) for one in (model, ForgetsLate(model, 56)))
    row = ByText("news", Measure(20.0), Measure(20.5), positions=positions_of(dense, broken, 65))
    assert row.positions.pruned[:7] == row.positions.dense[:7]
    assert worse_late((row,)).startswith("from token 58 on it loses ")


@pytest.mark.parametrize(("late", "spread"), [(0.05, 0.01), (-0.5, 0.01), (0.3, 0.6)])
def test_little_or_unsure_is_not_warned_of(late, spread):
    assert worse_late((text(late, spread),)) is None


def test_ends_of_parts_are_those_of_the_reading():
    assert part_ends(20, 8) == [4, 7, 10, 12, 14, 16, 18, 20]
    assert part_ends(1024, 8)[-2:] == [897, 1024]


def test_a_length_counts_where_dense_can_do_it(tmp_path):
    right = [number % 8 for number in range(16)]
    wrong = [(number + 1) % 8 for number in range(16)]
    dense = {"chance": 0.125, "lengths": [row(256, right, right), row(512, wrong, right)]}
    pruned = {"chance": 0.125, "lengths": [row(256, right[:12] + wrong[12:], right), row(512, wrong, right)]}
    near, far = retrieval_rows(dense, pruned)
    assert (near.dense, near.pruned, near.same, near.lost, near.gained, near.counts) == (1.0, 0.75, 0.75, 4, 0, True)
    assert near.p == pytest.approx(2 / 2**4)
    assert (far.dense, far.same, far.counts) == (0.0, 1.0, False)
    data = dataclasses.replace(sample(), retrieval=(near, far), by_text=(text(0.4),))
    shown = render_markdown(data)
    assert "Not counted: 512 tokens" in shown
    assert "75.0 %" in shown
    data.write(tmp_path / "report.json")
    assert ReportData.read(tmp_path / "report.json") == data


def asked(name: str, counts: bool, lost: int | None = 12) -> TaskRow:
    figures = Measure(0.6), Measure(0.5), Measure(0.5), Measure(-0.1, error=0.03)
    p = None if lost is None else 0.012931
    return TaskRow(name, "acc", 200, *figures, True, 0.25, lost, lost and 2, p, counts if lost else None)


def test_the_card_and_compare_say_whose_answers_changed(tmp_path):
    tasks = asked("facts", True), asked("german", False), asked("prose", True, None)
    retrieved = retrieval_rows(*[{"chance": 0.125, "lengths": [row(256, list(range(8)), list(range(8))), row(512, [1] * 8, [0] * 8)]}] * 2)
    data = dataclasses.replace(sample(), tasks=tasks, retrieval=tuple(retrieved))
    data.write(tmp_path / "report.json")
    report = read_json(tmp_path / "report.json")
    facts, german, prose = card._tasks(report["tasks"])
    assert facts == ("facts", "acc", "200", "0.6", "0.5", "12, 2 (p = 0.013)")
    assert german[-1] == "not counted: dense is within three standard errors of guessing"
    assert prose[-1] == "–"
    assert list(card._retrieval(report["retrieval"])) == [("256", "100%", "100%", "100%"), ("512", "0%", "—", "—")]
    one, other = (SimpleNamespace(name=name, tasks=found) for name, found in (("one", tasks), ("other", tasks[:1])))
    rows = [[cell.whole for cell in line] for line in task_table([one, other]).rows]
    assert [line[0] + " " + line[2] for line in rows] == ["facts one", "facts other", "german one", "prose one"]
    assert [line[-1] for line in rows] == ["12, 2 p = 0.013", "12, 2 p = 0.013", "12, 2 not counted", "–"]
    assert _task_row(report["tasks"][0]) == tasks[0]


def row(length: int, chosen: list[int], right: list[int]) -> dict:
    return {"length": length, "chosen": chosen, "right": right}
