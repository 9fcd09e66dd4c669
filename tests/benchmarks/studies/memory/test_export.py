"""Exports in processes of their own: how often a model of medium size is held at most, and the table of several lowerings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.studies.memory import export as export_memory
from benchmarks.studies.memory.export import BAR, forms, in_a_child, main, measured
from pipeline.common.errors import TrimlineError
from tests.tiny import tiny_model

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
SIZES = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 64}


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 million weights, 226 MB in fp32."""
    return tiny_model("llama", tmp_path_factory.mktemp("medium"), **SIZES, num_key_value_heads=4)


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param("fp32", marks=pytest.mark.slow),
        pytest.param("fp16", marks=pytest.mark.slow),
        pytest.param("int4", marks=pytest.mark.slow),
    ],
)
def test_the_weights_are_held_two_and_a_half_times_at_most(medium: Path, precision: str) -> None:
    found = in_a_child(medium, "fused", precision, threads=2)
    assert found["weights"] > 200e6
    assert 0.2 < found["times"] <= BAR, found  # quantised weights are a fraction of those in fp32


@pytest.mark.slow
def test_the_portable_lowering_is_measured_too(tmp_path: Path) -> None:
    found = in_a_child(tiny_model("llama", tmp_path), "portable", "fp32", threads=1)
    assert 0 < found["weights"] < found["before"] < found["peak"]
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_portable_graph_in_int8(medium: Path) -> None:
    found = in_a_child(medium, "portable", "int8", threads=2)
    assert 0.2 < found["times"] <= BAR, found


def test_what_the_budget_refuses_says_so(tmp_path: Path) -> None:
    found = measured(tiny_model("llama", tmp_path), "portable", "int8", threads=1, memory=1)
    assert found["refused"].startswith("ONNX Runtime's tools make the portable graph int8 with all of its weights in memory")


def asked(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, str]], Any]:
    """What would be measured, and what the command said."""
    children: list[tuple[str, str]] = []

    def pretended(_checkpoint: Path, lowering: str, precision: str, _threads: int, budget: int | None) -> dict[str, Any]:
        children.append((lowering, precision))
        known = {"weights": 2**20, "before": 2**21}
        return known | ({"refused": "too large."} if budget and precision == "int8" else {"peak": 2**22, "times": 2.0})

    monkeypatch.setattr(export_memory, "in_a_child", pretended)
    monkeypatch.setattr(export_memory, "Checkpoint", lambda folder: folder)
    app = typer.Typer()
    app.command()(main)
    return children, CliRunner().invoke(app, ["model", *arguments])


def test_one_table_holds_both_lowerings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- export-memory:begin -->\n<!-- export-memory:end -->\n", encoding="utf-8")
    children, done = asked(["--page", str(page)], monkeypatch)
    assert done.exit_code == 0, done.output
    assert children == [(lowering, name) for lowering in ("fused", "portable") for name in ("fp32", "fp16", "int8", "int4")]
    lines = page.read_text(encoding="utf-8").splitlines()
    assert "| fused | fp32 | 1 | 2 | 4 | 2.00 | 2.5 | reached |" in lines
    assert "| portable | int4 | 1 | 2 | 4 | 2.00 | 2.5 | reached |" in lines


def test_a_refusal_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--lowering", "portable", "--lowering", "gguf", "--precision", "fp32", "--precision", "int8", "--memory", "2MiB"]
    children, done = asked(arguments, monkeypatch)
    assert children == [("portable", "fp32"), ("portable", "int8"), ("gguf", "fp32")]
    assert "| portable | fp32 | 1 | 2 | 4 | 2.00 | 2 MiB | missed |" in done.output
    assert "| portable | int8 | 1 | 2 | – | – | 2 MiB | refused: too large. |" in done.output


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [str(tmp_path / "nowhere")])
    assert (done.exit_code, "There is no checkpoint folder" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("lowerings", "precisions", "problem"),
    [(["fussed"], [], "There is no lowering 'fussed'"), (["gguf"], ["int8"], "Nothing is written in 'int8' here")],
)
def test_what_is_not_known_is_a_sentence(lowerings: list[str], precisions: list[str], problem: str) -> None:
    with pytest.raises(TrimlineError, match=problem):
        forms(lowerings, precisions)
