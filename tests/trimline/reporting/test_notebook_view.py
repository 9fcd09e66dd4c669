"""What a notebook shows of a report: the sentence, the table and every plot, as SVG that is whole; nothing that runs, nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.trimline.reporting.sample_report import sample
from tests.trimline.reporting.test_report import EVIL, bare
from tests.trimline.reporting.test_report_in_browser import CHROMIUM, opened
from trimline.reporting import Measure, Recovery, ReportData, SpeedPoint, headline
from trimline.reporting.axes import Scale, scale
from trimline.reporting.notebook import Report, render_notebook
from trimline.reporting.plots import figure
from trimline.reporting.still import still

KEYS = ("widths", "importance", "losses", "latency", "tradeoff")


def full() -> ReportData:
    losses = tuple((10 * step, 4.0 - 0.03 * step) for step in range(1, 40))
    return dataclasses.replace(sample(), recovery=Recovery("trained with LoRA", 100_000, Measure(60.2, error=0.9), losses))


def drawn(key: str, data: ReportData) -> ElementTree.Element:
    return ElementTree.fromstring(still(figure(key, data), "a plot"))


def texts(plot: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in plot.iter("text")]


def test_a_report_is_drawn_and_a_run_says_where_its_folders_are() -> None:
    shown = Report(**vars(full()))._repr_html_()
    assert headline(full()) in shown
    assert shown.count("<svg") == shown.count("<h4>") == len(KEYS)
    assert "Another program used a third of the processor" in shown
    assert "Package" not in shown
    assert "<p>Package: <code>runs/a&lt;b/package</code></p>" in render_notebook(full(), (("Package", Path("runs/a<b/package")),))


def test_a_report_is_read_as_what_was_asked_for(tmp_path: Path) -> None:
    sample().write(tmp_path / "report.json")
    read = Report.read(tmp_path / "report.json")
    assert type(read) is Report
    assert vars(read) == vars(sample())
    assert type(ReportData.read(tmp_path / "report.json")) is ReportData


def test_nothing_runs_and_nothing_comes_from_elsewhere() -> None:
    data = full()
    rows = tuple(dataclasses.replace(row, name=EVIL) for row in data.models)
    workloads = tuple(dataclasses.replace(row, name=EVIL) for row in data.workloads)
    points = tuple(dataclasses.replace(point, name=EVIL) for point in data.decode_points)
    evil = dataclasses.replace(
        data, model_source=EVIL, models=rows, workloads=workloads, decode_points=points, importance_name=EVIL, warnings=(EVIL,)
    )
    shown = render_notebook(evil, ((EVIL, Path(EVIL)),))
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 8
    assert re.findall(r"https?:|//|url\(|\bon\w+=|<(?:iframe|img|link|object)", shown.replace(EVIL.replace("<", "&lt;"), "")) == []


def test_bars_stand_where_their_values_are() -> None:
    data = full()
    bars = [bar for bar in drawn("widths", data).iter("rect") if bar.find("title") is not None]
    assert len(bars) == 4 * len(data.blocks)
    dense, kept = bars[: len(data.blocks)], bars[len(data.blocks) : 2 * len(data.blocks)]
    for block, whole, part in zip(data.blocks, dense, kept, strict=True):
        assert float(part.get("height", "")) == pytest.approx(float(whole.get("height", "")) * block.ffn / block.dense_ffn, abs=0.11)
        assert part.get("x") == whole.get("x")
    assert {"FFN channels", "KV groups", "Block", "1,500", "absent"} <= set(texts(drawn("widths", data)))


def test_every_sample_has_its_point_and_the_box_its_quartiles() -> None:
    data = full()
    one = dataclasses.replace(data, workloads=(dataclasses.replace(data.workloads[0], dense_samples=(0.001, 0.002, 0.003, 0.004, 0.005)),))
    plot = drawn("latency", one)
    assert len(list(plot.iter("circle"))) == 5 + len(one.workloads[0].pruned_samples)
    ends = [float(circle.get("cx", "")) for circle in list(plot.iter("circle"))[-5:]]
    box = [float(number) for number in re.findall(r"[MHVZ]?([\d.]+)", list(plot.iter("path"))[-1].get("d", ""))]
    assert box[0] == pytest.approx(ends[1], abs=0.11)  # of five, the second and the fourth are the quartiles
    assert box[2] == pytest.approx(ends[3], abs=0.11)
    assert "dense" in texts(plot)


def test_what_is_infinite_is_left_out() -> None:
    points = (*sample().decode_points, SpeedPoint("broken", math.inf, 99.0))
    plot = drawn("tradeoff", dataclasses.replace(sample(), decode_points=points))
    assert len(list(plot.iter("circle"))) == 3
    assert "broken" not in texts(plot)
    assert "There is no pruned model" in render_notebook(bare())


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert [text for _, text in Scale(0, 100, 0.9, 1.42).ticks()] == ["0.9", "1.0", "1.1", "1.2", "1.3", "1.4"]
    assert [text for _, text in Scale(0, 100, 9, 310, logarithmic=True).ticks()] == ["10", "20", "50", "100", "200"]
    assert Scale(0, 100, 1, 100, logarithmic=True).place(10) == 50
    assert list(scale({}, [{"type": "scatter", "x": [3.0]}], "x", (0, 100)).ticks())
    assert scale({}, [{"type": "scatter", "y": []}], "y", (0, 100)).high == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the plots with")
def test_nothing_is_cut_off_in_a_browser(tmp_path: Path) -> None:
    measure = """<script>document.body.dataset.cut = [...document.querySelectorAll("svg text, svg rect, svg circle")].filter(part => {
        const own = part.getBoundingClientRect(), all = part.ownerSVGElement.getBoundingClientRect();
        return own.left < all.left || own.right > all.right || own.top < all.top || own.bottom > all.bottom;
    }).map(part => part.outerHTML).join("; ") || "nothing";</script>"""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{render_notebook(full())}{measure}", encoding="utf-8")
    document, complaints = opened(page, tmp_path)
    assert re.findall('data-cut="([^"]*)"', document) == ["nothing"]
    assert complaints == []
