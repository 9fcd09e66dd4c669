"""What a report says of a mixture that lost experts: other counts, and what the router sends where."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from pipeline.architecture.families import family_named
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from tests.trimline.reporting.sample_report import sample
from trimline.reporting import ExpertCurve, ExpertPoint, Measure, Recovery, ReportData, RoutedRow, headline, render_html, render_markdown
from trimline.reporting.notebook import render_notebook
from trimline.reporting.page import plots_of
from trimline.reporting.plots import figure
from trimline.reporting.sections import sections
from trimline.stages.expert_rows import routed_rows

POINTS = (
    ExpertPoint(8, Measure(20.0, error=0.5), 0.0, 1.0),
    ExpertPoint(6, Measure(22.0, error=0.5), 0.125, 0.875, planned=True),
    ExpertPoint(4, Measure(900.0, error=9.0), 3.5, 0.25),
)
ROUTED = (RoutedRow(1, (0.5, 0.25, 0.25, 0.0), (0, 1, 2)), RoutedRow(2, (0.1, 0.2, 0.3, 0.4), (1, 2, 3)))


def mixture(**changed: object) -> ReportData:
    data = sample()
    assert data.removed is not None
    curve = ExpertCurve(8, "invented prose, 2 windows of 32 tokens", POINTS, ("1 experts in every block are too few.",))
    removed = dataclasses.replace(data.removed, experts=0.25)
    return dataclasses.replace(data, **{"removed": removed, "expert_curve": curve, "routed": ROUTED} | changed)


def test_every_point_stands_in_the_table_and_the_count_of_the_run_is_marked() -> None:
    text = render_markdown(mixture())
    assert "| 6 | 25.0 % | 22.00 ± 0.50 | 0.125 | 87.5 % | this run |" in text
    assert "| 4 | 50.0 % | 900.00 ± 9.00 | 3.500 | 25.0 % |" in text
    assert "Not possible: 1 experts in every block are too few." in text
    assert "| 1 | 50.0 % | 0.0 % | 1 | 0.0 % | 3 |" in text
    assert "| 2 | 40.0 % | 10.0 % | 0 | 10.0 % | 0 |" in text
    assert "25 % of its experts" in headline(mixture())
    assert "| Perplexity with 4 experts |  | 900.00 |  |" in text


def test_what_is_special_about_the_points_is_said() -> None:
    curve = mixture().expert_curve
    assert curve is not None
    text = render_markdown(mixture(expert_curve=dataclasses.replace(curve, ranked=False, others=True)))
    assert "the other points go by the first scores alone" in text
    assert "the other units that this run removed are gone too" in text
    assert "first scores alone" not in render_markdown(mixture())
    trained = mixture(recovery=Recovery("LoRA", 1024, Measure(22.0)))
    assert "| 87.5 % | this run, before recovery |" in render_markdown(trained)


def test_the_heat_map_holds_every_share_and_a_cross_where_an_expert_went() -> None:
    heat, crosses = figure("routed", mixture()).to_dict()["data"]
    assert [list(row) for row in heat["z"]] == [list(row.shares) for row in ROUTED]
    assert list(zip(crosses["y"], crosses["x"], strict=True)) == [(1, 3), (2, 0)]
    page = render_html(mixture())
    assert json.loads(page.split('id="plot-routed-data">')[1].split("</script>")[0])["data"][0]["type"] == "heatmap"


def test_the_curve_is_drawn_over_counts_with_the_run_s_own_in_its_colour() -> None:
    perplexities, divergences = figure("expert-curve", mixture()).to_dict()["data"]
    assert (list(perplexities["x"]), list(perplexities["y"])) == ([4, 6, 8], [900.0, 22.0, 20.0])
    assert list(divergences["y"]) == [3.5, 0.125, 0.0]
    assert [colour == "var(--pruned)" for colour in perplexities["marker"]["color"]] == [False, True, False]


def test_a_notebook_draws_both_without_scripts() -> None:
    drawn = render_notebook(mixture())
    assert "Block 1, Expert 0: 50.00%" in drawn
    assert "densest: 50.0%" in drawn
    assert "<script" not in drawn


def test_points_that_were_not_compared_have_no_second_panel() -> None:
    curve = mixture().expert_curve
    assert curve is not None
    alone = tuple(dataclasses.replace(point, divergence=None, same_best=None) for point in POINTS)
    data = mixture(expert_curve=dataclasses.replace(curve, points=alone))
    assert len(figure("expert-curve", data).to_dict()["data"]) == 1
    assert render_notebook(data)


def test_a_model_without_experts_has_no_such_section(tmp_path: Path) -> None:
    assert "experts" not in [section.key for section in sections(sample())]
    assert {"expert-curve", "routed"} <= {plot.key for plot in plots_of(sections(mixture()))}
    mixture().write(tmp_path / "report.json")
    assert ReportData.read(tmp_path / "report.json") == mixture()


def test_shares_come_from_the_first_step_that_counted() -> None:
    units = ((0, 1), (0, 1))
    scores = {
        "step1.expert.0": torch.ones(2),
        "step1.routed.0": torch.tensor([3.0, 1.0]),
        "step1.routed.1": torch.zeros(2),
        "step2.routed.0": torch.tensor([4.0, 0.0]),
    }
    plan = Plan(family_named("qwen3_moe"), Selection((0,), units, units, experts=((0,), (1,))), (), scores=scores)
    first, second = routed_rows(plan)
    assert (first.block, first.shares, first.kept) == (0, (0.75, 0.25), (0,))
    assert (second.shares, second.kept) == ((0.0, 0.0), ())
