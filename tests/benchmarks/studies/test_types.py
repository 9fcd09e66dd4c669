"""The table of types: real cells of two types, what a dead or hanging process becomes, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.studies.types import __main__ as types
from benchmarks.studies.types.cells import CELLS, FAILS, NOTHING, PASSES, REFUSED, tried
from benchmarks.studies.types.table import table

VERSIONS = {"torch": "2"}


def run(records: Path, **asked: Any) -> None:
    types.main(**{"only": None, "part": None, "records": records, "work": None, "limit": 300.0, "anew": False, "page": None} | asked)


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, page = tmp_path / "types.jsonl", tmp_path / "page.md"
    page.write_text("<!-- types:begin -->\n<!-- types:end -->\n", encoding="utf-8")
    run(records, only=["gemma"], part=["layer"])
    first = json.loads(records.read_text(encoding="utf-8"))
    assert {name: found["outcome"] for name, found in first["cells"].items()} == {
        "layer/uniform": PASSES,
        "layer/decilm": REFUSED,
        "layer/free": PASSES,
    }
    run(records, only=["gemma", "arcee"], part=["layer"], page=page)
    assert [json.loads(line)["type"] for line in records.read_text(encoding="utf-8").splitlines()] == ["arcee", "gemma"]
    assert json.loads(records.read_text(encoding="utf-8").splitlines()[1]) == first
    assert capsys.readouterr().err.count("gemma: ") == 1
    drawn = page.read_text(encoding="utf-8")
    assert "| `arcee` | ? | ? ? ? | ? ? ? | ✓ r1 ✓ |" in drawn
    assert "- r1: Profile 'decilm' computes as Llama does and cannot express TYPE.\n" in drawn


def test_a_process_that_hangs_or_dies_is_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = types.row("llama", {}, ["inspect"], 0.1, tmp_path)
    assert hung["cells"] == {"inspect": {"outcome": FAILS, "why": "no answer within 0.1 s"}}
    monkeypatch.setattr(types, "MODULE", "benchmarks.studies.no_such_module")
    dead = types.row("llama", hung, ["gguf/alike", "onnx/fused"], 60.0, tmp_path)
    assert list(dead["cells"]) == ["inspect", "onnx/fused", "gguf/alike"]
    assert dead["cells"]["onnx/fused"] == {"outcome": FAILS, "why": "the process ended with status 1"}


def test_whatever_is_raised_is_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError(f"{tmp_path}/hidden_act")

    monkeypatch.setitem(CELLS, "onnx/fused", broken)
    found = tried({"cell": "onnx/fused", "type": "llama", "work": str(tmp_path)})
    assert found == {"outcome": FAILS, "why": "KeyError: 'hidden_act' (test_types.py:broken)"}


def test_unknown_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        run(tmp_path / "types.jsonl", only=["lama"])
    assert "There is no tiny model of type 'lama'. Known are apertus," in capsys.readouterr().err


def test_reasons_are_numbered_once() -> None:
    def record(name: str, why: str) -> dict[str, Any]:
        cells: dict[str, Any] = {"inspect": {"outcome": PASSES}, "ffn/uniform": {"outcome": REFUSED, "why": f"{name} is too small."}}
        cells |= {"onnx/fused": {"outcome": FAILS, "why": why}, "gguf/alike": {"outcome": NOTHING, "why": "it was not made"}}
        return {"type": name, "cells": cells, "versions": VERSIONS}

    drawn = table([record("llama", "llama.cpp: a | b"), record("two", "KeyError: c")])
    assert "| `llama` | ✓ | r1 ? ? | ? ? ? | ? ? ? | ? ? ? | ? f1 | · ? |" in drawn
    assert "| `two` | ✓ | r1 ? ? | ? ? ? | ? ? ? | ? ? ? | ? f2 | · ? |" in drawn
    assert drawn.endswith("- r1: TYPE is too small.\n- f1: llama.cpp: a \\| b\n- f2: KeyError: c")
    assert drawn.startswith(f"2 types, {len(CELLS)} cells each: 2 pass, 2 are refused, 2 fail, 2 have nothing to export. With torch 2.")
