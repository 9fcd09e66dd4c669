"""``trimline export --format gguf`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exporters.gguf import child
from tests.exporters.models import stock
from trimline.cli.app import app


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")


def test_one_file_and_what_its_gates_saw(tmp_path: Path) -> None:
    model, out = stock("llama", tmp_path), tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(model), "--format", "gguf", "--precision", "fp32", "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["gate"]["transformers"]["difference"] == 0
    assert not answer["gate"]["llama.cpp"]["run"]
    assert (out / "model.gguf").is_file()
    assert json.loads((out / "export.json").read_text())["precision"] == "fp32"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "gguf", "--precision", "int4"), "--precision int4 is not possible"),
        (("--format", "gguf", "--quantise", "q9"), "--quantise q9 is not possible"),
        (("--format", "gguf", "--quantise", "q8_0"), "llama-cpp-python is not installed"),
        (("--quantise", "q8_0"), "--quantise is for GGUF"),
        (("--format", "gguf", "--lowering", "portable"), "--lowering is for ONNX"),
        (("--format", "gguf", "--logits", "all"), "--logits is for ONNX"),
        (("--format", "gguf", "--perplexity-bar", "1e9"), "--perplexity-bar 1000000000.0 is not possible"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(stock("llama", tmp_path)), *words, "-o", str(out)])
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not out.exists()
