"""The report in a real browser: every plot is drawn, nothing is complained about, nothing is wider than a phone."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.trimline.reporting.sample_report import sample
from trimline.reporting import render_html

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=8000",
    "--dump-dom",
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the report with")


def opened(page, tmp_path, *flags):
    """(the document after its scripts ran, the browser's console lines)."""
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,1400", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def test_every_plot_is_drawn_without_complaint(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render_html(sample()), encoding="utf-8")
    document, complaints = opened(page, tmp_path)
    drawn = re.split(r'<div class="plot[^>]*id="plot-', document)[1:]
    assert [part.split('"')[0] for part in drawn] == ["widths", "importance", "latency", "tradeoff"]
    for part in drawn:
        assert '<svg class="main-svg"' in part
    assert document.count('class="point"') >= 4 * 30  # dense and kept bars of thirty blocks, in two panels
    assert document.count('class="box"') == 6
    assert complaints == []


def width_on_a_phone(page, tmp_path):
    """How wide a page is, in pixels, where 420 are there to show it."""
    # Chromium's own window is never narrower than 500 px, so the page goes into a frame that is.
    frame = tmp_path / "frame.html"
    measure = "document.body.dataset.width = f.contentDocument.documentElement.scrollWidth"
    shown = f'<iframe id=f src="{page.name}" style="width:420px;height:900px;border:0" onload="setTimeout(() => {measure}, 500)"></iframe>'
    frame.write_text(f"<!doctype html><body>{shown}")
    document, _ = opened(frame, tmp_path, "--allow-file-access-from-files")
    return int(re.search(r'data-width="(\d+)"', document).group(1))


def test_a_phone_shows_the_page_without_sideways_scrolling(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render_html(sample()), encoding="utf-8")
    assert width_on_a_phone(page, tmp_path) <= 420
