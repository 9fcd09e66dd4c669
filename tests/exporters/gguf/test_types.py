"""What llama.cpp's quantiser gave another type than was asked for; its own choice of types is run by findings/llama_cpp_widths_of_k_quants.sh."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporters.gguf import stage
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.gguf.types import stored_types
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json
from tests.exporters.models import OPTIONS, stock
from trimline.recipe import checked_recipe, recipe_text

Q = gguf.GGMLQuantizationType


def write(path: Path, types: dict[str, tuple[int, Q]]) -> Path:
    """A file with a norm and matrices of four rows, of a length and a type each."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    for name, (length, kind) in types.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor(name, np.zeros((4, length // block * size), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_matrices_in_larger_types_are_counted_and_named(tmp_path: Path) -> None:
    kinds = {
        "output.weight": (256, Q.Q6_K),
        "blk.0.ffn_up.weight": (256, Q.Q4_K),
        "blk.0.ffn_down.weight": (992, Q.Q5_0),
        "blk.1.ffn_down.weight": (1000, Q.F16),
    }
    found = stored_types(write(tmp_path / "k.gguf", kinds), "q4_k_m")
    assert found.counts == {"F16": 1, "Q4_K": 1, "Q5_0": 1, "Q6_K": 1}
    assert found.other == {"blk.0.ffn_down.weight": ("Q5_0", 992), "blk.1.ffn_down.weight": ("F16", 1000)}
    assert "2 of 4 matrices" in found.sentence()
    assert "blk.0.ffn_down.weight (Q5_0, rows of 992)" in found.sentence()
    assert "multiple of 256" in found.sentence()


def test_what_a_kind_mixes_by_itself_is_no_other_type(tmp_path: Path) -> None:
    whole = {"output.weight": (256, Q.Q6_K), "blk.0.attn_q.weight": (256, Q.Q5_K), "blk.0.attn_v.weight": (256, Q.Q6_K)}
    assert not stored_types(write(tmp_path / "k.gguf", whole), "q5_k_m").other
    plain = {"output.weight": (256, Q.Q6_K), "blk.0.attn_q.weight": (992, Q.Q4_0), "blk.0.attn_v.weight": (1000, Q.F16)}
    found = stored_types(write(tmp_path / "q.gguf", plain), "q4_0")
    assert list(found.other) == ["blk.0.attn_v.weight"]
    assert "multiple of 32" in found.sentence()


def test_they_stand_in_the_gate_and_in_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp itself is stood in for by a file of the types that it would write."""
    monkeypatch.setattr(stage, "llama_cpp_python", lambda: Path("python"))
    monkeypatch.setattr(stage, "quantise", lambda python, whole, out, kind, threads: write(out, {"blk.0.ffn_down.weight": (96, Q.Q5_0)}))
    monkeypatch.setattr(stage, "gate_llama_cpp", lambda *_: {"run": False})
    said: list[Event] = []
    (out := tmp_path / "out").mkdir()
    export_gguf(stock("llama", tmp_path), GgufSlice(quantise="q4_k_m"), OPTIONS, out, Events(said.append))
    assert read_json(out / "gate.json")["types"] == {
        "asked": "q4_k_m",
        "counts": {"Q5_0": 1},
        "other": {"blk.0.ffn_down.weight": "Q5_0"},
    }
    assert any("1 of 1 matrices are in a larger type than q4_k_m" in event.text for event in said)


STEP = {"budget": {"ffn": {"remove": 0.2}}}


@pytest.mark.parametrize(
    ("steps", "quantise", "expected", "said"),
    [
        ([STEP], "q4_k_m", [256], "multiples of 256, which q4_k_m"),
        ([STEP, STEP | {"round_to": 32}], "q6_k", [256, 32], r"no multiples of 256 \(round_to: 32\)"),
        ([{"method": "reap", "budget": {"expert": {"remove": 0.25}}}], "q4_k_m", [256], None),  # experts are as wide as before
        ([STEP], "q8_0", [64], None),
        ([STEP], None, [64], None),
    ],
)
def test_recipes_for_k_types_round_to_their_blocks(steps: list, quantise: str | None, expected: list[int], said: str | None) -> None:
    package = {"targets": ["llama.cpp"], "gguf": {"quantise": quantise}}
    recipe = checked_recipe({"prune": {"steps": steps}, "package": package})
    assert [step.round_to for step in recipe.prune.steps] == expected
    assert ("round_to: 256" in recipe_text(recipe)) == (256 in expected)
    sentence = recipe.rounding()
    assert (sentence is None) if said is None else re.search(said, sentence or "")


def test_other_targets_round_as_ever() -> None:
    recipe = checked_recipe({"prune": {"steps": [STEP]}, "package": {"gguf": {"quantise": "q4_k_m"}}})
    assert [step.round_to for step in recipe.prune.steps] == [64]
    assert recipe.rounding() is None
