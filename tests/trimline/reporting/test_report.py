"""The report's content: what it says, what it leaves out, and that nothing in the data can break out of it."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re

import pytest
from rich.console import Console

import trimline.reporting.sections as sections_module
from benchmarks.results.target import BAND
from pipeline.common.errors import TrimlineError
from pipeline.common.markdown import escape
from tests.trimline.reporting.sample_report import blocks, sample
from trimline.reporting import (
    ByText,
    GateRow,
    Measure,
    Recovery,
    ReportData,
    SpeedPoint,
    headline,
    render_html,
    render_markdown,
    render_terminal,
    write_report,
)
from trimline.reporting import formats as shown
from trimline.reporting.content import Table
from trimline.reporting.data import RoundRow, TargetRow
from trimline.reporting.headline import busy_warning
from trimline.reporting.sections import sections
from trimline.reporting.speed import summary

EVIL = '</script><script>alert("x")</script>'


def bare() -> ReportData:
    """A report of a run that stopped after pruning was planned: no figure at all."""
    return ReportData(title="t", command="c", model_source="m", recipe="r", models=())


def test_json_round_trip(tmp_path):
    data = sample()
    data.write(tmp_path / "report.json")
    assert ReportData.read(tmp_path / "report.json") == data


def test_the_file_keeps_its_words(tmp_path):
    """A realised gain is called ``realised`` there, as in packages of older versions."""
    sample().write(tmp_path / "report.json")
    workload = json.loads((tmp_path / "report.json").read_text())["workloads"][0]
    assert workload["realised"]["value"] == sample().workloads[0].realised_gain.value
    assert "realised_gain" not in workload


def test_json_keeps_an_infinite_perplexity(tmp_path):
    broken = dataclasses.replace(sample().models[1], perplexity=Measure(math.inf))
    data = dataclasses.replace(sample(), models=(sample().models[0], broken))
    data.write(tmp_path / "report.json")
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)  # no bare Infinity, which is not JSON
    assert ReportData.read(tmp_path / "report.json") == data
    assert "infinite" in render_markdown(data)


@pytest.mark.parametrize("text", ["{", "{}", '{"title": 3}', "[]"])
def test_a_file_that_is_no_report(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(TrimlineError, match="is not a report"):
        ReportData.read(tmp_path / "report.json")


def test_an_unknown_field_is_named(tmp_path):
    record = {"title": "t", "command": "c", "model_source": "m", "recipe": "r", "models": [], "speeed": 1}
    (tmp_path / "report.json").write_text(json.dumps(record))
    with pytest.raises(TrimlineError, match="speeed"):
        ReportData.read(tmp_path / "report.json")


def test_a_missing_report(tmp_path):
    with pytest.raises(TrimlineError, match="does not exist"):
        ReportData.read(tmp_path / "report.json")


def test_same_data_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(sample(), tmp_path / name)
    for file in ("report.json", "report.html", "report.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_html_and_markdown_say_the_same():
    data = sample()
    page, text = html.unescape(render_html(data)), render_markdown(data)
    tables = [item for section in sections(data) for item in section.items if isinstance(item, Table)]
    assert len(tables) >= 9
    for table in tables:
        for row in table.rows:
            assert "| " + " | ".join(escape(cell.whole) for cell in row) + " |" in text
            assert all(cell.text in page and cell.detail in page for cell in row)
        for name, formula in table.formulas():
            assert formula in page
            assert f"- {escape(name)}: {escape(formula)}" in text


def test_figures_that_a_reader_looks_for():
    text = render_markdown(sample())
    for figure in ("134.5 M", "94.7 M", "−29.6 %", "378.8 MB", "25.94 ± 0.41", "54.02", "1.42×", "not resolved", "37.5 %", "1.1 %"):
        assert figure in text, figure
    assert "absent (was 1,536)" in text


def test_headline_states_what_went_and_the_gain():
    line = headline(sample())
    assert line.startswith("Invented-135M-Instruct without 50 % of its FFN channels and 1 % of its KV groups: 134.5 M → 94.7 M parameters")
    assert "perplexity 25.94 → 54.02" in line
    assert re.search(r"decode 1\.\d\d× as fast \[1\.\d\d, 1\.\d\d\]", line)


def test_a_difference_inside_the_interval_is_no_gain():
    data = sample()
    flat = dataclasses.replace(data.workloads[1], speedup=Measure(1.04, 0.97, 1.11))
    data = dataclasses.replace(data, workloads=(flat,))
    assert "decode without measurable change" in headline(data)
    assert "no measurable change [0.97, 1.11]" in render_markdown(data)


def test_a_speedup_whose_control_failed_is_marked_everywhere():
    data = sample()
    doubtful = dataclasses.replace(data.workloads[1], speedup=Measure(1.38, 1.3, 1.46), verdict="not resolved")
    data = dataclasses.replace(data, workloads=(doubtful,))
    assert headline(data).endswith("decode speed not resolved.")
    assert render_markdown(data).count("not resolved 1.38× [1.30, 1.46]") == 2  # in both tables that show it


def test_a_wide_interval_whose_control_failed_is_not_called_no_change():
    busy = dataclasses.replace(
        sample().workloads[1], speedup=Measure(1.4, 0.73, 2.78), verdict="not resolved", control=Measure(0.93, 0.7, 1.2)
    )
    data = dataclasses.replace(sample(), workloads=(busy,))
    assert "no measurable change" not in render_markdown(data)
    assert "measurable change" not in headline(data)
    (warning,) = busy_warning(data.workloads)
    assert "dense differed from itself by up to 7.0%" in warning
    assert "benchmark.rounds: 100" in warning
    quiet = dataclasses.replace(busy, verdict="faster")
    assert list(busy_warning([quiet])) == []


def test_what_an_engines_call_is_made_of_stands_where_one_was_timed_only():
    data = sample()
    assert "TensorRT engine is made of" not in render_markdown(data)
    parts = {"enqueue": 0.0001, "h2d": 0.0002, "compute": 0.003, "d2h": 0.0004, "host_latency": 0.0036}
    timed = dataclasses.replace(data.workloads[0], dense_parts=parts, pruned_parts=parts | {"compute": 0.001})
    page = render_markdown(dataclasses.replace(data, workloads=(timed, *data.workloads[1:])))
    table = page.split("What a call of the TensorRT engine is made of**")[1].split("**")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| Prefill")]
    assert [row[1:] for row in rows] == [
        ["dense", "100.0 µs", "200.0 µs", "3.00 ms", "400.0 µs", "3.60 ms"],
        ["pruned", "100.0 µs", "200.0 µs", "1.00 ms", "400.0 µs", "3.60 ms"],
    ]


def test_a_speedup_without_interval_claims_nothing():
    data = sample()
    data = dataclasses.replace(data, workloads=(dataclasses.replace(data.workloads[1], speedup=Measure(1.4)),))
    assert "decode speed not resolved" in headline(data)


def test_no_speed_without_perplexity():
    data = sample()
    data = dataclasses.replace(data, models=tuple(dataclasses.replace(row, perplexity=None) for row in data.models))
    text = render_markdown(data)
    assert "a speed without its price is not printed" in text
    assert "tokens/s" not in text
    assert "as fast" not in headline(data)


@pytest.mark.parametrize("samples", [(0.001,), tuple(range(1, 100))])
def test_no_p99_below_a_hundred_samples(samples):
    assert summary(samples)[-1] == f"n/a (n={len(samples)})"


def test_statistics_of_raw_samples():
    # 1 … 101 ms: mean and median 51 ms, quartile 76 ms, standard deviation 29.30 ms by hand.
    values = summary([i / 1000 for i in range(1, 102)])
    assert values == ("51.00 ms", "1.00 ms", "101.0 ms", "29.30 ms", "51.00 ms", "76.00 ms", "91.00 ms", "96.00 ms", "100.0 ms")


def test_parts_that_were_not_run_say_so():
    text = render_markdown(bare())
    for sentence in (
        "There is no pruned model",
        "Nothing was removed yet",
        "The benchmark was not run",
        "No gate was run",
        "It was not judged which programs load the result",
        "No text was used",
        "The environment was not recorded",
    ):
        assert sentence in text
    page = render_html(bare())
    assert "<script" not in page  # without plots, no plotly.js


def test_nothing_in_the_data_becomes_markup():
    data = sample()
    data = dataclasses.replace(
        data,
        title=EVIL,
        command=EVIL,
        recipe=EVIL,
        evaluation=EVIL,
        warnings=(EVIL,),
        importance_name=EVIL,
        environment={EVIL: EVIL},
        gates=(GateRow(EVIL, False, detail=EVIL),),
        models=tuple(dataclasses.replace(row, name=EVIL) for row in data.models),
        workloads=tuple(dataclasses.replace(row, name=EVIL) for row in data.workloads),
        decode_points=(SpeedPoint(EVIL, 2.0, 3.0),),
    )
    page = render_html(data)
    assert "alert(" in page
    assert '<script>alert("' not in page
    assert page.count("</script>") == page.count("<script")  # none was closed early
    outside_code = re.sub(r"```.*?```", "", render_markdown(data), flags=re.DOTALL)
    assert "<script" not in outside_code


def test_a_fence_in_a_recipe_does_not_end_the_code_block():
    text = render_markdown(dataclasses.replace(sample(), recipe="a\n```\n# heading"))
    assert "````yaml\na\n```\n# heading\n````" in text


def test_the_page_asks_for_nothing_outside():
    page = render_html(sample())
    assert "default-src 'none'" in page
    for element in re.findall(r"<(?:link|img|iframe|script)\b[^>]*>", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)):
        assert "src=" not in element
        assert "href=" not in element
    assert page.count("plotly.js v") == 1  # inlined once


def test_markdown_makes_no_link_of_the_data():
    assert escape("[a](javascript:1) [b][c] [d]: e [1.2, 3.4]") == r"[a\](javascript:1) [b\][c] [d\]: e [1.2, 3.4]"


def test_terminal_table():
    output = io.StringIO()
    data = sample()
    render_terminal(data, Console(file=output, width=110), page=None)
    text = output.getvalue()
    for name in (
        "Parameters",
        "Checkpoint size",
        "Perplexity",
        "Prefill latency",
        "Decode tokens/s",
        "Peak memory",
        "Decode realised gain",
    ):
        assert name in text
    assert data.warnings[0] in text
    assert "1.42× allowed" in text


def test_terminal_prints_markup_as_text():
    output = io.StringIO()
    render_terminal(dataclasses.replace(sample(), title="[red]x[/red] [/]"), Console(file=output, width=80))
    assert "[red]x[/red] [/]" in output.getvalue()


def test_a_model_without_importance_has_no_plot_of_it():
    data = dataclasses.replace(sample(), blocks=tuple(dataclasses.replace(row, importance=None) for row in blocks(4, 2)))
    page = render_html(data)
    assert "plot-widths" in page
    assert "plot-importance" not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (shown.count(134_515_008), "134.5 M"),
        (shown.count(7_241_732_096), "7.24 G"),
        (shown.count(999), "999"),
        (shown.size(380_600_000), "380.6 MB"),
        (shown.size(0), "0 B"),
        (shown.duration(0.0142), "14.20 ms"),
        (shown.duration(0.0000021), "2.10 µs"),
        (shown.duration(141.4), "2 min 21 s"),
        (shown.change(100, 70), "−30.0 %"),
        (shown.change(1, 1), "unchanged"),
        (shown.change(25.9, 2.1e6), "× 81,081"),
        (shown.change(None, 1), "–"),
        (shown.figure(4.8e-5), "4.8e-5"),
        (shown.perplexity(Measure(2.1e6)), "2.10e+06"),
    ],
)
def test_numbers(text, expected):
    assert text == expected


def test_brackets_stand_where_a_formula_promises_them():
    tables = [item for section in sections(sample()) for item in section.items if isinstance(item, Table)]
    promised = [
        row[place].whole
        for table in tables
        for row in table.rows
        for place, column in enumerate(table.columns)
        if "brackets" in column.formula
    ]
    assert len(promised) == 2 * len(sample().workloads)  # speed-ups, and the same beside the roofline
    assert all("[" in cell for cell in promised)


def test_a_recovery_stands_beside_what_it_started_from():
    losses = tuple((step, 4.0 - step / 100) for step in range(1, 101))
    recovery = Recovery("LoRA of rank 16, towards the text, 100 steps", 204_800, Measure(71.5, error=1.2), losses)
    data = dataclasses.replace(sample(), recovery=recovery)
    text, page = render_markdown(data), render_html(data)
    for rendered in (text, page):
        assert [part for part in ("71.50", "± 1.20", "204,800 tokens", "54.02") if part not in rendered] == []
    assert "perplexity 25.94 → 54.02 (71.50 before recovery)" in headline(data)
    assert 'id="plot-losses"' in page
    assert "3.0000" in text
    assert "was not trained" in render_markdown(sample())
    assert "71.50" not in render_markdown(sample())


def test_texts_stand_one_by_one_and_the_headline_says_where_more_was_lost():
    near = ByText("news", Measure(20.0), Measure(30.0, error=0.5), 0.4, 0.7)
    far = ByText("manual", Measure(10.0), Measure(31.0), 1.5, 0.451)
    data = dataclasses.replace(sample(), by_text=(near, far))
    for rendered in (render_markdown(data), html.unescape(render_html(data))):
        assert [part for part in ("1.500×", "3.100×", "0.400", "45.1", "± 0.50") if part not in rendered] == []
        assert "Text by text" in rendered
    assert "; on manual perplexity is 3.10 times dense, where it is 1.50 times on news." in headline(data)
    unlike = [dataclasses.replace(far, pruned=Measure(value)) for value in (9.0, 15.0, 16.4)]
    assert all("manual" not in headline(dataclasses.replace(data, by_text=(near, row))) for row in unlike)
    assert "Text by text" not in render_markdown(sample())


@pytest.mark.parametrize(("written", "words"), [(40, "written is that of step 40"), (0, "the model as it was pruned")])
def test_held_out_losses_say_which_state_was_written(written, words):
    losses, held = ((10, 3.0), (80, 2.0)), ((0, 3.5), (40, 3.25 if written else 3.75), (80, 3.6))
    recovery = Recovery("every weight", 9, Measure(71.5), losses, held_out=held, written=written)
    data = dataclasses.replace(sample(), recovery=recovery)
    for rendered in (render_markdown(data), html.unescape(render_html(data))):
        assert words in rendered
        assert f"Held-out loss 3.5000 before, {'3.2500' if written else '3.5000'} at best, 3.6000 at the end" in rendered


def test_a_recovery_is_written_and_read_again(tmp_path):
    data = dataclasses.replace(sample(), recovery=Recovery("w", 3, Measure(2.0), ((1, 2.5),)))
    data.write(tmp_path / "report.json")
    assert ReportData.read(tmp_path / "report.json") == data


def test_targets_are_said_with_what_came_out():
    targets = (TargetRow("decode 1.4 times as fast", "1.380× (1.371 to 1.391)", "met"), TargetRow("at most 9 parameters", "9", "met"))
    rounds = (RoundRow(1, "1.4×", "1.402×", "1.310× (1.300 to 1.321)", False), RoundRow(2, "1.496×", "1.497×", "1.380×", True))
    data = dataclasses.replace(sample(), targets=targets, rounds=rounds)
    console = Console(file=io.StringIO(), width=200)
    render_terminal(data, console)
    for text in (render_markdown(data), html.unescape(render_html(data))):
        assert "Is it what was asked for?" in text
        assert all(words in text for words in ("decode 1.4 times as fast", "1.496×", "this model", "within 3% of the target"))
    assert "Target, decode 1.4 times as fast: 1.380× (1.371 to 1.391); met" in console.file.getvalue()
    assert "Is it what was asked for?" not in render_markdown(sample())
    assert sections_module.BAND == BAND
