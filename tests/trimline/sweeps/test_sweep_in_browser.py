"""The page of a sweep in a real browser: it draws, sorts, selects, switches and complains about nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.trimline.reporting.test_report_in_browser import CHROMIUM, opened, width_on_a_phone
from tests.trimline.sweeps.sample_sweep import sample_sweep
from trimline.sweeps.page import render_sweep

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page with")

# What a reader does, and what then stands on the page, written into the document for the test to read.
VISIT = """
<script>
const seen = {};
const plot = (key) => document.getElementById("plot-" + key);
const first = () => document.querySelector("#points-table tbody tr").dataset.name;
const bars = (panel) => plot("widths").data[3 * panel + 1].y;
const ring = () => { const trace = plot("front").data.at(-1); return [trace.x, trace.y]; };
const heading = (place) => document.querySelectorAll("#points-table th")[place];
const state = () => ({ label: document.getElementById("point-label").textContent, ffn: bars(0), groups: bars(1), ring: ring(),
  selected: [...document.querySelectorAll("tr.point[aria-selected=true]")].map((row) => row.dataset.name) });
function clickPoint(trace, place) {
  const at = plot("front").querySelectorAll(".scatterlayer .trace")[trace].querySelectorAll("path.point")[place].getBoundingClientRect();
  const where = { bubbles: true, view: window, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2 };
  const layer = plot("front").querySelector(".nsewdrag");
  for (const kind of ["mousemove", "mousedown", "mouseup"]) layer.dispatchEvent(new MouseEvent(kind, where));
}
setTimeout(() => {
  seen.begin = state();
  seen.order = [...document.querySelectorAll("tr.point")].map((row) => row.dataset.name);
  heading(2).querySelector("button").click();
  seen.cheapest = [first(), heading(2).getAttribute("aria-sort")];
  heading(2).querySelector("button").click();
  seen.dearest = [first(), heading(2).getAttribute("aria-sort")];
  heading(0).querySelector("button").click();
  seen.byMethod = [first(), heading(0).getAttribute("aria-sort"), heading(2).getAttribute("aria-sort")];
  heading(5).querySelector("button").click();
  heading(5).querySelector("button").click();
  seen.missingLast = document.querySelector("#points-table tbody tr:last-child").children[5].dataset.value;
  document.querySelector('tr.point[data-name="method=flap,remove=0.5"]').click();
  seen.row = state();
  seen.gone = plot("widths").data[2].x;
  document.querySelector('tr.point[data-name="dense"]').dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  seen.dense = state();
  const at = plot("front").data.findIndex((trace) => (trace.customdata || []).includes("method=flap,remove=0.2"));
  Plotly.Fx.hover(plot("front"), [{ curveNumber: at, pointNumber: plot("front").data[at].customdata.indexOf("method=flap,remove=0.2") }]);
  seen.hover = plot("front").querySelector(".hoverlayer").textContent;
  document.querySelectorAll(".axes button")[1].click();
  seen.axis = [plot("front").layout.xaxis.title.text, ...[...document.querySelectorAll(".knee")].map((sentence) => sentence.hidden)];
  setTimeout(() => {
    clickPoint(2, 1);
    setTimeout(() => { seen.point = state(); document.body.dataset.seen = JSON.stringify(seen); }, 500);
  }, 500);
}, 1000);
</script>
"""


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """(what was seen, the document, the browser's complaints)."""
    folder = tmp_path_factory.mktemp("page")
    page = folder / "sweep.html"
    page.write_text(render_sweep(sample_sweep()).replace("</body>", VISIT + "</body>"), encoding="utf-8")
    document, complaints = opened(page, folder)
    found = re.search(r'data-seen="([^"]*)"', document)
    assert found, complaints
    return json.loads(found.group(1).replace("&quot;", '"')), document, complaints


def widths(name):
    row = sample_sweep().point(name)
    return [block.ffn for block in row.blocks], [block.kv_groups for block in row.blocks]


def test_nothing_is_complained_about_and_both_plots_are_drawn(visit):
    _, document, complaints = visit
    assert complaints == []
    assert document.count('<svg class="main-svg"') >= 4
    assert "<b>cannot</b>" not in document  # what data says is text


def test_the_knee_is_selected_at_first(visit):
    seen, _, _ = visit
    data = sample_sweep()
    knee = data.fronts[0].knee
    assert knee is not None
    assert seen["begin"]["selected"] == [knee]
    assert (seen["begin"]["ffn"], seen["begin"]["groups"]) == widths(knee)
    speed = data.point(knee).speed(data.fronts[0].axis)
    assert seen["begin"]["ring"] == [[speed.speedup.value], [data.point(knee).perplexity.value]]


def test_columns_sort_both_ways_by_value(visit):
    seen, _, _ = visit
    by_perplexity = sorted(sample_sweep().models, key=lambda row: row.perplexity.value)
    assert seen["order"] == [row.name for row in sample_sweep().models]
    assert seen["cheapest"] == [by_perplexity[0].name, "ascending"]
    assert seen["dearest"] == [by_perplexity[-1].name, "descending"]
    assert seen["byMethod"] == ["method=cfsp,remove=0.3", "ascending", "none"]  # equals stay as they were sorted before
    assert seen["missingLast"] == ""


def test_a_row_or_a_key_selects_a_point_and_shows_its_widths(visit):
    seen, _, _ = visit
    assert seen["row"]["label"] == "flap, remove 0.5"
    assert (seen["row"]["ffn"], seen["row"]["groups"]) == widths("method=flap,remove=0.5")
    assert seen["gone"] == [20]
    assert seen["row"]["selected"] == ["method=flap,remove=0.5"]
    assert (seen["dense"]["ffn"], seen["dense"]["selected"]) == ([1536] * 30, ["dense"])


def test_a_point_says_what_it_is_under_the_pointer(visit):
    seen, _, _ = visit
    point = sample_sweep().point("method=flap,remove=0.2")
    assert "flap" in seen["hover"]
    assert f"{point.perplexity.value:.1f}" in seen["hover"]


def test_another_workload_has_its_own_plot_and_knee(visit):
    seen, _, _ = visit
    assert seen["axis"] == ["Prefill 512/1: times as fast as dense (right is better)", True, False]


def test_a_click_on_a_point_of_the_plot_selects_it(visit):
    seen, _, _ = visit
    assert seen["point"]["selected"] == ["method=cfsp,remove=0.2"]
    assert (seen["point"]["ffn"], seen["point"]["groups"]) == widths("method=cfsp,remove=0.2")


def test_a_sweep_without_speeds_still_shows_widths_and_says_so(tmp_path):
    data = sample_sweep()
    untimed = tuple(replace(row, speeds=(), untimed="It <died>.") if not row.failure else row for row in data.points)
    page = tmp_path / "sweep.html"
    page.write_text(render_sweep(replace(data, points=untimed, dense=replace(data.dense, speeds=()), fronts=())), encoding="utf-8")
    document, complaints = opened(page, tmp_path)
    assert complaints == []
    assert "No point was timed" in document
    assert "It &lt;died&gt;." in document
    assert document.count('id="plot-widths"') == 1
    assert document.count('class="point"') >= 60


def test_a_phone_shows_the_page_without_sideways_scrolling(tmp_path):
    page = tmp_path / "sweep.html"
    page.write_text(render_sweep(sample_sweep()), encoding="utf-8")
    assert width_on_a_phone(page, tmp_path) <= 420
