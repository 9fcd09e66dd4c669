"""Exports of a model larger than the memory: the same files, gates that were run on mapped weights, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.held import is_mapped
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.live.paging import open_mapped
from pipeline.tensors.mapped import MappedTensors
from tests.exporters.models import OPTIONS, stock, uneven
from tests.quick import quick_alone

SMALL = replace(OPTIONS, memory=1)
MEASURED = "gate.json"  # ONNX Runtime rounds otherwise where it packs nothing


def both(checkpoint, folder, **recipe) -> dict[str, dict[str, bytes]]:
    """The files of an export by a model in memory, and by one that stays in its files."""
    made = {}
    for name, options in {"held": OPTIONS, "mapped": SMALL}.items():
        out = folder / name
        out.mkdir()
        export(checkpoint, ExportSlice.model_validate({"perplexity_bar": 1e6, **recipe}), options, out, Events())
        made[name] = {path.name: path.read_bytes() for path in out.iterdir()}
    return made


@pytest.mark.parametrize(
    ("lowering", "precision"),
    quick_alone([("fused", "fp32"), ("fused", "int4"), ("portable", "fp32"), ("portable", "fp16")], [("fused", "int4")], unpacked=True),
)
def test_the_same_files_from_mapped_weights(lowering, precision, tmp_path):
    if lowering == "fused":
        pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    checkpoint = uneven("llama", tmp_path)
    made = both(checkpoint, tmp_path, lowering=lowering, precision=precision)
    gates = {name: json.loads(files.pop(MEASURED)) for name, files in made.items()}
    assert made["held"] == made["mapped"]
    assert "weights" not in gates["held"]
    assert gates["mapped"]["weights"].startswith("mapped")
    assert gates["mapped"]["checks"].keys() == gates["held"]["checks"].keys()
    assert all(check["passed"] for check in gates["mapped"]["checks"].values())
    assert gates["mapped"]["perplexity"]["ratio"] == pytest.approx(gates["held"]["perplexity"]["ratio"], rel=1e-3)


def test_a_bf16_checkpoint_becomes_fp32(tmp_path):
    """Weights of another dtype go through a file of their own."""
    checkpoint = stock("llama", tmp_path)
    load_model(checkpoint, dtype=torch.bfloat16).save_pretrained(checkpoint)
    made = both(checkpoint, tmp_path, lowering="portable")
    assert made["held"]["model.onnx.data"] == made["mapped"]["model.onnx.data"]
    assert made["held"]["model.onnx"] == made["mapped"]["model.onnx"]


def test_the_gate_finds_a_wrong_weight_without_holding_the_model(tmp_path, monkeypatch):
    checkpoint, out = stock("llama", tmp_path), tmp_path / "out"
    out.mkdir()
    keep = MappedTensors.keep
    monkeypatch.setattr(MappedTensors, "keep", lambda self, tensor: keep(self, tensor * 1.1))
    load_model(checkpoint, dtype=torch.bfloat16).save_pretrained(checkpoint)
    with pytest.raises(GateError, match="torch, float32"):
        export(checkpoint, ExportSlice(lowering="portable"), SMALL, out, Events())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_would_hold_the_model_is_refused_first(precision, tmp_path):
    checkpoint, out = stock("llama", tmp_path), tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrimlineError, match=rf"portable graph {precision} with all of its weights in memory: .* GiB in fp32"):
        export(checkpoint, ExportSlice(lowering="portable", precision=precision), SMALL, out, Events())
    assert not list(out.iterdir())


def test_gguf_is_the_same_and_says_what_was_not_opened(tmp_path):
    checkpoint, made = stock("llama", tmp_path), {}
    for name, options in {"held": OPTIONS, "mapped": SMALL}.items():
        (tmp_path / name).mkdir()
        export_gguf(checkpoint, GgufSlice(), options, tmp_path / name, Events())
        made[name] = (tmp_path / name / "model.gguf").read_bytes(), json.loads((tmp_path / name / "gate.json").read_text())
    assert made["held"][0] == made["mapped"][0]
    assert made["held"][1]["tensors"] == made["mapped"][1]["tensors"] > 0
    assert made["held"][1]["transformers"]["run"]
    assert "holds the model whole" in made["mapped"][1]["transformers"]["why"]


def test_the_budget_decides(tmp_path):
    source = Checkpoint(stock("llama", tmp_path))
    weights = 4 * source.geometry.total_parameters()
    assert not is_mapped(source, replace(OPTIONS, memory=3 * weights))
    assert is_mapped(source, replace(OPTIONS, memory=2 * weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_a_mapped_tensor_is_what_was_kept(dtype, tmp_path):
    mapped = MappedTensors(tmp_path)
    tensors = [(torch.rand(3, 5) * 100).to(dtype), torch.zeros(0, 4, dtype=dtype), (torch.rand(7) * 100).to(dtype)]
    kept = [mapped.keep(tensor) for tensor in tensors]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, kept, strict=True))
    kept[0].zero_()
    assert torch.equal(mapped.keep(tensors[0]), tensors[0])
    assert not list(tmp_path.iterdir()), "the file has no name"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_model_out_of_files_computes_what_the_loaded_one_does(stored, tmp_path):
    """What the portable lowering hands to torch's exporter."""
    checkpoint = uneven("llama", tmp_path)
    load_model(checkpoint, dtype=stored).save_pretrained(checkpoint)
    tokens = torch.randint(4, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    kept, mapped = [], MappedTensors(tmp_path)
    model = open_mapped(checkpoint, OPTIONS, torch.float32, lambda tensor: kept.append(tensor.nbytes) or mapped.keep(tensor))
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, load_model(checkpoint, dtype=torch.float32)(tokens).logits)
    assert bool(kept) == (stored is torch.bfloat16)
