import hashlib
import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from exporters.onnx.gate import judging
from exporters.onnx.gate.gate import gate_onnx
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.options import RunOptions
from pipeline.evaluate.gates import gate_tokens
from pipeline.live.loading import load_model
from tests.exporters.models import ATTENTION_FIRST_GONE, OPTIONS, smaller, stock, uneven

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
FUSED = ExportSlice(lowering="fused")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")


def exported(checkpoint: Path, out: Path, recipe: ExportSlice = FUSED, events: Events | None = None) -> Path:
    out.mkdir(parents=True)
    export(checkpoint, recipe, OPTIONS, out, events or Events())
    return out


def largest_difference(checkpoint: Path, folder: Path) -> float:
    ids = gate_tokens(Checkpoint(checkpoint).geometry.vocab, length=20)
    with torch.no_grad():
        reference = load_model(checkpoint, dtype=torch.float32)(ids).logits
    return float((reference - torch.from_numpy(OnnxDecoder(folder, 1, every_position=True).logits(ids.numpy()))).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_model_is_the_same_in_torch_onnxruntime_and_genai(family, tmp_path):
    checkpoint = stock(family, tmp_path)
    out = exported(checkpoint, tmp_path / "out")
    record = json.loads((out / "gate.json").read_text())
    assert len(record["checks"]) == 5
    assert all(check["passed"] and check["difference"] < 1e-4 for check in record["checks"].values())
    assert record["genai"]["run"]
    assert record["genai"]["passed"]
    assert record["checks"]["64 greedy tokens"]["tokens_compared"] == 64
    assert json.loads((out / "config.json").read_text()) == Checkpoint(checkpoint).config
    assert largest_difference(checkpoint, out) < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_smaller_model_of_blocks_alike_is_known_by_its_config(precision, tmp_path):
    out = exported(smaller("llama", tmp_path), tmp_path / "out", ExportSlice(lowering="fused", precision=precision))
    config = AutoConfig.from_pretrained(out)
    assert (type(config).__name__, config.intermediate_size, config.num_key_value_heads) == ("LlamaConfig", 64, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_blocks(family, tmp_path):
    kv_groups = tuple(2 * n for n in (1, 0, 2, 1)) if family == "qwen3" else (1, 0, 2, 1)
    checkpoint = uneven(family, tmp_path, kv_groups)
    out = exported(checkpoint, tmp_path / "out")
    assert not (out / "config.json").exists(), "no library reads every block's own sizes from it"
    assert largest_difference(checkpoint, out) < 1e-4
    inputs = {
        i.name: i.type.tensor_type.shape.dim[1].dim_value for i in onnx.load(out / "model.onnx", load_external_data=False).graph.input
    }
    heads = {int(name.split(".")[1]): size for name, size in inputs.items() if name.endswith(".key")}
    assert heads == {block: size for block, size in enumerate(kv_groups) if size}


def test_block_without_attention_may_come_first(tmp_path):
    checkpoint = uneven("llama", tmp_path, ATTENTION_FIRST_GONE)
    assert largest_difference(checkpoint, exported(checkpoint, tmp_path / "out")) < 1e-4


def test_untied_head_biases_and_scaled_rope(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    settings = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "rope_parameters": rope}
    checkpoint = stock("llama", tmp_path, **settings)
    assert largest_difference(checkpoint, exported(checkpoint, tmp_path / "out")) < 1e-4


def test_same_bytes_twice(tmp_path):
    checkpoint = uneven("llama", tmp_path)
    digests = []
    for name in ("first", "a/second/place"):
        out = exported(checkpoint, tmp_path / name)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()})
    assert digests[0] == digests[1]
    assert str(tmp_path).encode() not in (tmp_path / "first/model.onnx").read_bytes()


def test_tied_table_is_stored_once(tmp_path):
    tied, untied = stock("llama", tmp_path / "t"), stock("llama", tmp_path / "u", tie_word_embeddings=False)
    sizes = [(exported(path, tmp_path / f"out{i}") / "model.onnx.data").stat().st_size for i, path in enumerate((tied, untied))]
    table = Checkpoint(tied).geometry.vocab * 64 * 4
    assert sizes[1] - sizes[0] == pytest.approx(table, abs=4096)


def test_half_precision_checkpoint_is_exported_in_fp32(tmp_path):
    checkpoint = stock("llama", tmp_path)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    out = exported(checkpoint, tmp_path / "out")
    assert largest_difference(checkpoint, out) < 1e-4
    assert {t.data_type for t in onnx.load(out / "model.onnx").graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_gate_fails_on_wrong_weights(tmp_path):
    checkpoint = stock("llama", tmp_path)
    out = exported(checkpoint, tmp_path / "out")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.5
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GateError, match=r"without cache.*first at row"):
        gate_onnx(checkpoint, out, FUSED, OPTIONS, Events())


def test_gate_is_set_against_rounding_where_the_bar_is_below_it(tmp_path, monkeypatch):
    checkpoint = stock("llama", tmp_path)
    out = exported(checkpoint, tmp_path / "out")
    assert json.loads((out / "gate.json").read_text())["rounding of torch"] is None
    monkeypatch.setattr(judging, "BAR", 1e-9)
    monkeypatch.setattr(judging, "ROUNDINGS", 50)
    record = gate_onnx(checkpoint, out, FUSED, OPTIONS, Events())
    assert 0 < record["rounding of torch"] < 1e-4
    bars = [check["bar"] for check in (*record["checks"].values(), record["genai"])]
    assert max(bars) == 50 * record["rounding of torch"]
    assert len(set(bars)) > 1  # each by its own tokens


def test_builder_is_heard_in_the_log_and_not_on_the_terminal(tmp_path, capfd):
    seen: list[Event] = []
    exported(stock("llama", tmp_path), tmp_path / "out", events=Events(seen.append))
    assert any("GroupQueryAttention" in line for event in seen for line in event.data.get("builder", []))
    assert "GroupQueryAttention" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("llama", {"hidden_act": "tanh"}, "activation is 'tanh'"),
        ("opt", {}, "knows no opt"),
    ],
)
def test_refuses_what_it_would_get_wrong(family, overrides, reason, tmp_path):
    checkpoint = stock(family, tmp_path, **overrides)
    with pytest.raises(TrimlineError, match=reason):
        export(checkpoint, FUSED, RunOptions(threads=1), tmp_path, Events())
    assert not (tmp_path / "model.onnx").exists()
