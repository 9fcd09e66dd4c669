"""*Your own model in ten minutes* is followed literally: its commands, in its order, in a folder with a model of one's own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import benchmarks.stage
from pipeline.checkpoints.checkpoint import Checkpoint
from tests.end_to_end.scenario import Called, InProcess, command, trimline
from tests.test_docs import FENCE, blocks
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your-own-model.md"
MODEL = "my-model"
ADDRESS = "http://127.0.0.1:8000"
# What a tiny model needs less of; the recipe says the rest.
QUICKER = {"windows: 32": "windows: 4", "windows: 12": "windows: 2", "rounds: 25": "rounds: 2", "most_seconds: 120": "most_seconds: 1"}


@contextmanager
def serving(arguments: list[str], here: Path) -> Iterator[str]:
    """A server as the page starts it, at a port that is free; its address."""
    with subprocess.Popen(
        command(*arguments, "--port", 0), cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            said = ""
            for line in server.stdout:
                said += line
                if found := re.search(r"at (http://\S+)/v1", line):
                    yield found[1]
                    return
            pytest.fail(said)
        finally:
            server.terminate()


def typed(page: Path) -> list[list[str]]:
    """The commands of a page, in order."""
    return [shlex.split(line) for block in blocks(page, "console") for line in block.splitlines()]


@pytest.mark.slow
def test_the_page_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    monkeypatch.setattr(benchmarks.stage, "BenchmarkWorker", InProcess)
    monkeypatch.chdir(tmp_path)
    tiny_model("llama", tmp_path / MODEL)
    new, run, serve, curl, package, verify = typed(PAGE)
    done: dict[str, Called] = {new[1]: trimline(*new[1:])}
    assert f"Next: {shlex.join(run)}" in done["new"].stdout
    recipe = tmp_path / run[2]
    text = recipe.read_text()
    for usual, quicker in QUICKER.items():
        assert text.count(usual) == 1, usual
        text = text.replace(usual, quicker)
    recipe.write_text(text)
    done["run"] = trimline(*run[1:], "--threads", 1)
    with serving(serve[1:], tmp_path) as address:
        answer = subprocess.run([part.replace(ADDRESS, address) for part in curl], capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["usage"]["completion_tokens"] > 0
    done |= {line[1]: trimline(*line[1:]) for line in (package, verify)}
    assert {name: called.stderr for name, called in done.items() if called.code} == {}
    assert (tmp_path / "runs" / MODEL / "report.html").is_file()
    shipped = tmp_path / "runs" / MODEL / "package"
    assert {path.name for path in (shipped / "serve").iterdir()} == {"onnxruntime-genai", "vllm", "triton"}
    smaller, dense = Checkpoint(shipped / "model").geometry, Checkpoint(tmp_path / MODEL).geometry
    assert smaller.decoder_parameters() == pytest.approx(0.7 * dense.decoder_parameters(), rel=0.05)


def test_refusals_are_quoted_as_they_are_said() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|[^|]+\|[^|]+\|$", PAGE.read_text().split("What a refusal means")[1], re.MULTILINE)
    assert len(quoted) > 5
    code = "".join(path.read_text() for room in ("pipeline", "trimline") for path in (ROOT / room).rglob("*.py"))
    assert [sentence for sentence in quoted if sentence not in code] == []


def test_the_page_is_short() -> None:
    assert len(FENCE.sub("", PAGE.read_text()).split()) <= 900
