"""Mixtures as portable graphs: gathered experts pass the gate, and what they cannot be is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.onnx.lowering.mixtures import check_mixture, gathered_bytes
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.families import FAMILIES
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.rebuild.gguf_form import NoGgufForm, gguf_form
from tests.exporters.models import OPTIONS
from tests.tiny import TINY_MIXTURES, tiny_model

# Those whose every block attends with keys and values of heads, which is what a graph hands from call to call.
ATTENDING = [name for name in TINY_MIXTURES if not FAMILIES[name].kinds.costs]
CARRYING = [name for name in TINY_MIXTURES if name not in ATTENDING]


def two_blocks(name: str, folder: Path) -> Path:
    return tiny_model(name, folder, num_hidden_layers=2, **({"layer_types": None} if name == "gpt_oss" else {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENDING)
def test_portable(tmp_path: Path, name: str) -> None:
    source, out = two_blocks(name, tmp_path / "dense"), tmp_path / "out"
    out.mkdir()
    export(source, ExportSlice(), OPTIONS, out, Events())
    assert (out / "model.onnx").is_file()


@pytest.mark.parametrize("name", CARRYING)
def test_mixtures_with_other_mixers_are_no_graph_and_no_gguf(tmp_path: Path, name: str) -> None:
    source, out = tiny_model(name, tmp_path / "dense"), tmp_path / "out"
    checkpoint = Checkpoint(source)
    out.mkdir()
    with pytest.raises(TrimlineError, match=f"No graph is made of {name}"):
        export(source, ExportSlice(), OPTIONS, out, Events())
    with pytest.raises(NoGgufForm, match=f"mixers that {name} carries"):
        gguf_form(checkpoint.geometry, checkpoint.config)


def test_fewer_bits_and_too_little_memory_are_refused(tmp_path: Path) -> None:
    geometry = Checkpoint(tiny_model("mixtral", tmp_path)).geometry
    assert gathered_bytes(geometry, 10) == 10 * 2 * (2 * 96 * 64) * 4
    check_mixture(geometry, "fp32", 10, gathered_bytes(geometry, 10))
    with pytest.raises(TrimlineError, match="would gather"):
        check_mixture(geometry, "fp32", 10, gathered_bytes(geometry, 10) - 1)
    with pytest.raises(TrimlineError, match="fp32 alone"):
        check_mixture(geometry, "int4", 1, 10**12)
