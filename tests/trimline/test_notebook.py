"""The notebook of the docs runs in a kernel without widgets: progress is drawn, and so is the result."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from tests.end_to_end.scenario import tiny_inputs
from trimline.progress import IN_NOTEBOOKS, kernel_shell

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# Replaced is what is large: the model, its texts and windows, and the processes that time it.
TINY = """
run = trimline.run
import sys
sys.path.insert(0, {root!r})
import benchmarks.stage
from tests.end_to_end.scenario import InProcess
benchmarks.stage.BenchmarkWorker = InProcess
recipe["model"] = "inputs/model"
recipe["text"] = {{"calibration": "inputs/calibration.txt", "evaluation": "inputs/evaluation.txt"}}
recipe["prune"]["calibration"] = {{"windows": 8, "window": 32}}
recipe["prune"]["steps"][0]["round_to"] = 8
recipe["evaluate"] = {{"windows": 2, "window": 32}}
recipe["benchmark"] = {{"workloads": [{{"prompt": 8}}, {{"prompt": 4, "output": 3}}], "rounds": 2, "minimum_seconds": 0, "most_seconds": 1}}
"""
AGAIN = "trimline.run(recipe, 'runs/notebook').report"
ALONE = "perplexity = trimline.evaluate('inputs/model', text='inputs/evaluation.txt', windows=2, window=32)"
FAILS = "trimline.run({**recipe, 'model': 'inputs'}, 'runs/other')"


class Watching(NotebookClient):
    """Runs a notebook, and keeps what its outputs were meanwhile."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.meanwhile: list[str] = []

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data":
            self.meanwhile.append(msg["content"]["data"]["text/html"])
        return super().process_message(msg, cell, cell_index)


@dataclass(frozen=True)
class Ran:
    """The code cells, by the first words of their source, and what was drawn while they ran."""

    cells: dict[str, Any]
    meanwhile: list[str]

    def outputs(self, source: str, kind: str) -> list[Any]:
        return [output for output in self.cells[source].outputs if output.output_type == kind]

    def progress(self, source: str) -> list[str]:
        """The lines that are left of a cell's progress: of one output, whose bar is gone."""
        [shown] = self.outputs(source, "display_data")
        assert "<progress" not in shown.data["text/html"]
        assert html.unescape(shown.data["text/html"]).count("\n") == shown.data["text/plain"].count("\n") + 1
        return shown.data["text/plain"].splitlines()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The notebook after it ran on a tiny model, with three cells of the test's own behind its last."""
    folder = tmp_path_factory.mktemp("notebook")
    tiny_inputs(folder / "inputs", num_hidden_layers=2)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    given = next(number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(given + 1, new_code_cell(TINY.format(root=str(ROOT))))
    fails = new_code_cell(FAILS, metadata={"tags": ["raises-exception"]})
    notebook.cells += [new_code_cell(AGAIN), new_code_cell(ALONE), fails]
    client = Watching(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return Ran({cell.source: cell for cell in notebook.cells if cell.cell_type == "code"}, client.meanwhile)


def test_the_run_shows_its_progress_and_its_result(ran: Ran) -> None:
    [source] = [source for source in ran.cells if source.startswith("result = trimline.run(")]
    lines = ran.progress(source)
    stages = ("source", "text", "measure", "prune", "rebuild", "evaluate (dense)", "export (dense)", "benchmark", "report", "package")
    assert [stage for stage in stages if not any(line.startswith(f"✓ {stage}  ") for line in lines)] == []
    assert any(line.startswith("  ✓ gate  ONNX") for line in lines)
    assert any("<progress></progress> prune" in drawn for drawn in ran.meanwhile)
    assert any(re.search(r"<progress value=\d+ max=\d+></progress> \w+", drawn) for drawn in ran.meanwhile)
    [result] = ran.outputs(source, "execute_result")
    shown = result.data["text/html"]
    assert re.search(r"% of its FFN channels: [\d.]+ K → [\d.]+ K parameters, perplexity", shown)
    assert all(f">{name}</abbr>" in shown for name in ("Parameters", "Perplexity", "Decode latency", "Peak memory"))
    assert "<p>Package: <code>runs/notebook/package</code></p>" in shown
    assert [shown.count(f"<h4>{caption}") for caption in ("Kept width", "Block importance", "Latency")] == [1, 1, 1]
    assert shown.count("</svg>") == shown.count("<h4>")


def test_nothing_but_results_and_progress_is_printed(ran: Ran) -> None:
    printed = [output.text for source in ran.cells for output in ran.outputs(source, "stream")]
    assert printed == []
    assert [source for source in ran.cells if ran.outputs(source, "error")] == [FAILS]


def test_a_second_run_says_what_it_skips(ran: Ran) -> None:
    lines = ran.progress(AGAIN)
    assert "= export (dense)" in "\n".join(lines)
    assert not any(line.startswith("✓ prune") for line in lines)
    [report] = ran.outputs(AGAIN, "execute_result")
    assert "Package" not in report.data["text/html"]  # a report knows no folder


def test_a_verb_by_itself_shows_its_parts_and_a_failure_leaves_no_bar(ran: Ran) -> None:
    assert ran.progress(ALONE)[0] == "✓ perplexity over 64 tokens  2 of 2"
    assert ran.progress(FAILS)[-1] == "✗ source  not finished"


def test_outside_a_kernel_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    IN_NOTEBOOKS.note("said to nobody")
    assert kernel_shell() is None
    assert capfd.readouterr() == ("", "")


def test_the_notebook_holds_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell.source for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)#]+)", cell.source)]
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
