"""A GGUF holds the checkpoint, number by number; llama.cpp itself is run by tests/servers."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from exporters.gguf import child
from exporters.gguf.files import MODEL, write_gguf
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.reopen import compare_tensors
from exporters.gguf.stage import export_gguf
from exporters.gguf.tensors import pair_neighbours, part_halves
from exporters.held import open_reference
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Event, Events
from pipeline.common.files import read_json, write_json
from pipeline.rebuild.gguf_form import gguf_form
from tests.exporters.models import ATTENTION_FIRST_GONE, OPTIONS, stock, uneven
from tests.pipeline.rebuild.cases import Choice, fewer_blocks, fewer_groups, rebuilt_tiny


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: these tests are about what holds without it."""
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")


def exported(checkpoint: Path, out: Path, precision: str = "fp32", events: Events | None = None) -> tuple[gguf.GGUFReader, dict]:
    out.mkdir(parents=True)
    export_gguf(checkpoint, GgufSlice.model_validate({"precision": precision}), OPTIONS, out, events or Events())
    return gguf.GGUFReader(out / MODEL), read_json(out / "gate.json")


def key(reader: gguf.GGUFReader, name: str) -> object:
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()


@pytest.mark.parametrize(
    ("family", "overrides", "arch"),
    [
        ("llama", {}, "llama"),
        ("mistral", {}, "llama"),
        ("qwen2", {}, "qwen2"),
        ("qwen3", {"head_dim": 128}, "qwen3"),  # 128 is what transformers' reader takes, whatever the file says
        ("phi3", {}, "phi3"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transformers_reads_the_same_model(tmp_path: Path, family: str, overrides: dict, arch: str, precision: str) -> None:
    reader, gate = exported(stock(family, tmp_path, **overrides), tmp_path / "out", precision)
    assert gate["transformers"]["run"]
    assert gate["transformers"]["difference"] == 0
    assert not gate["llama.cpp"]["run"]
    assert "llama-cpp-python is not installed" in gate["llama.cpp"]["why"]
    assert key(reader, "general.architecture") == arch
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == ({"F32"} if precision == "fp32" else {"F32", "BF16"})


def test_uneven_blocks_as_deci(tmp_path: Path) -> None:
    """Of blocks (64, 1 group), (96, none), (no FFN, 2), (32, 1): the third gets an FFN of zeros."""
    folder = uneven("llama", tmp_path)
    reader, gate = exported(folder, tmp_path / "out")
    assert "knows no architecture deci" in gate["transformers"]["why"]
    assert key(reader, "deci.feed_forward_length") == [64, 96, 32, 32]
    assert key(reader, "deci.attention.head_count") == [2, 0, 4, 2]
    assert key(reader, "deci.attention.head_count_kv") == [1, 0, 2, 1]
    assert key(reader, "deci.attention.key_length") == key(reader, "deci.rope.dimension_count") == 16
    held = {tensor.name: tensor for tensor in reader.tensors}
    assert "blk.1.attn_q.weight" not in held
    assert not held["blk.2.ffn_down.weight"].data.any()
    source = Checkpoint(folder)
    query = torch.from_numpy(held["blk.2.attn_q.weight"].data.copy())
    assert torch.equal(query, pair_neighbours(source.tensor("model.layers.2.self_attn.q_proj.weight"), 16))
    assert torch.equal(torch.from_numpy(held["blk.2.attn_v.weight"].data.copy()), source.tensor("model.layers.2.self_attn.v_proj.weight"))


def test_a_first_block_without_attention_gets_one_of_zeros(tmp_path: Path) -> None:
    reader, _ = exported(uneven("mistral", tmp_path, ATTENTION_FIRST_GONE), tmp_path / "out")
    assert key(reader, "deci.attention.head_count_kv") == [1, 1, 2, 1]
    held = {tensor.name: tensor for tensor in reader.tensors}
    assert not held["blk.0.attn_output.weight"].data.any()


def test_blocks_that_hold_nothing_are_left_out(tmp_path: Path) -> None:
    def hollow(choice: Choice) -> None:
        choice.kv[1], choice.ffn[1] = (), ()

    seen: list[Event] = []
    reader, _ = exported(rebuilt_tiny(tmp_path, "llama", hollow, Profile.DECILM), tmp_path / "gguf", events=Events(seen.append))
    assert key(reader, "general.architecture") == "llama"  # what is left is alike
    assert key(reader, "llama.block_count") == 3
    assert any("1 blocks hold nothing" in event.text for event in seen)


@pytest.mark.parametrize(
    ("family", "choose", "arch", "overrides"),
    [
        ("qwen2", fewer_groups, "deci", {}),  # llama.cpp's qwen2 takes hidden / heads for head_dim
        ("llama", fewer_groups, "llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", fewer_groups, "qwen3", {}),
        ("llama", fewer_blocks, "llama", {}),
    ],
)
def test_uniform_results(tmp_path: Path, family: str, choose: Callable[[Choice], None], arch: str, overrides: dict) -> None:
    folder = rebuilt_tiny(tmp_path, family, choose, Profile.UNIFORM, **overrides)
    reader, gate = exported(folder, tmp_path / "gguf")
    assert gate["architecture"] == key(reader, "general.architecture") == arch
    stored = sum(1 for _ in Checkpoint(folder).locations)
    assert gate["tensors"] == len(reader.tensors) == stored


def test_same_bytes_twice_and_no_paths(tmp_path: Path) -> None:
    checkpoint = stock("llama", tmp_path)
    digests = []
    for name in ("first", "a/second/place"):
        exported(checkpoint, tmp_path / name, "fp16")
        digests.append(hashlib.sha256((tmp_path / name / MODEL).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert str(tmp_path).encode() not in (tmp_path / "first" / MODEL).read_bytes()


def test_wrong_numbers_fail_the_gate(tmp_path: Path) -> None:
    source = Checkpoint(stock("llama", tmp_path))
    form, path = gguf_form(source.geometry, source.config), tmp_path / MODEL
    write_gguf(source, form, "fp32", path, Events())
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(source.folder / "model.safetensors")
    tensors[name][3, 5] += 1e-3
    save_file(tensors, source.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GateError, match=r"blk\.1\.ffn_up\.weight is not the checkpoint's"):
        compare_tensors(Checkpoint(source.folder), open_reference(source.folder, OPTIONS, mapped=False), form, "fp32", path)


def test_wrong_sizes_fail_the_gate(tmp_path: Path) -> None:
    source = Checkpoint(stock("llama", tmp_path))
    form, path = gguf_form(source.geometry, source.config), tmp_path / MODEL
    write_gguf(source, form, "fp32", path, Events())
    write_json(source.folder / "config.json", source.config | {"rms_norm_eps": 1e-3})
    with pytest.raises(GateError, match="layer_norm_rms_epsilon"):
        compare_tensors(Checkpoint(source.folder), open_reference(source.folder, OPTIONS, mapped=False), form, "fp32", path)


def test_pairing_is_undone_exactly() -> None:
    weight = torch.arange(2 * 6 * 3.0).reshape(12, 3)
    paired = pair_neighbours(weight, 6)
    assert paired[:6, 0].tolist() == [weight[row, 0].item() for row in (0, 3, 1, 4, 2, 5)]
    assert torch.equal(part_halves(paired, 6), weight)


def test_llama3_scaling_is_written_as_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    reader, gate = exported(stock("llama", tmp_path, rope_parameters=scaling), tmp_path / "out")
    factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight").data
    assert factors.shape == (8,)
    assert factors[0] == 1  # the fastest is left alone,
    assert factors[-1] == pytest.approx(8)  # the slowest is divided by the whole factor
    assert "drops the scaling" in gate["transformers"]["why"]


def test_a_sliding_window_caps_what_the_file_promises(tmp_path: Path) -> None:
    seen: list[Event] = []
    reader, _ = exported(stock("mistral", tmp_path, sliding_window=40), tmp_path / "out", events=Events(seen.append))
    assert key(reader, "llama.context_length") == 40
    assert any("says 40 positions" in event.text for event in seen)


REFUSED = [
    ("opt", {}, "no architecture for opt"),
    ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type 'dynamic'"),
    ("qwen3", {"attention_bias": True}, r"qwen3 has no bias on self_attn\.o_proj"),
]


@pytest.mark.parametrize(("family", "overrides", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_llama_cpp_would_compute_wrongly_is_refused(tmp_path: Path, family: str, overrides: dict, message: str) -> None:
    folder = stock(family, tmp_path, **overrides)
    with pytest.raises(TrimlineError, match=message) as caught:
        exported(folder, tmp_path / "out")
    assert caught.value.remedy
    assert not list((tmp_path / "out").iterdir())


def test_uneven_qwen3_and_phi3_are_refused(tmp_path: Path) -> None:
    for family in ("qwen3", "phi3"):
        with pytest.raises(TrimlineError, match=f"computes as Llama, not as {family}"):
            exported(uneven(family, tmp_path), tmp_path / family / "out")


def test_numbers_beyond_fp16_are_refused(tmp_path: Path) -> None:
    folder = stock("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrimlineError, match=r"layers\.0\.mlp\.up_proj\.weight holds numbers that fp16 cannot hold"):
        exported(folder, tmp_path / "out", "fp16")


def test_quantising_needs_llama_cpp(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrimlineError, match="llama-cpp-python is not installed"):
        export_gguf(stock("llama", tmp_path), GgufSlice(quantise="q8_0"), OPTIONS, out, Events())
    assert not list(out.iterdir())


def test_a_named_python_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(child.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(TrimlineError, match="which is no file"):
        exported(stock("llama", tmp_path), tmp_path / "out")


def test_a_child_that_dies_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such architecture' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(TrimlineError, match=r"exit 3\): no such architecture"):
        child.run(broken, "measure", {"model": "model.gguf"})


LLAMA_CPP = """
import os
from types import SimpleNamespace

__version__ = "1.2"

def llama_model_quantize_default_params():
    return SimpleNamespace()

def llama_model_quantize(model, out, settings):
    os.write(1, b"llama.cpp talks about itself\\n")
    with open(out, "wb") as file:
        file.write(f"{settings.ftype} {settings.nthread}".encode())
    return 0
"""


def test_the_runner_answers_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """Of that environment there is a stand-in for llama.cpp; what it prints is no answer."""
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    python = tmp_path / "python"
    start = f"import runpy, sys; sys.path.append({str(tmp_path)!r}); runpy.run_path(sys.argv[1])"
    python.write_text(f'#!/bin/sh\ntest "$1" = -I && exec {sys.executable} -I -c "{start}" "$2"\n')
    python.chmod(0o755)
    child.quantise(python, tmp_path / "model.gguf", tmp_path / "smaller.gguf", "q8_0", threads=3)
    assert (tmp_path / "smaller.gguf").read_text() == f"{int(gguf.LlamaFileType.MOSTLY_Q8_0)} 3"


def test_what_the_folder_says(tmp_path: Path) -> None:
    exported(stock("llama", tmp_path), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint_config.json",
        "export.json",
        "gate.json",
        "model.gguf",
    ]
    said = json.loads((tmp_path / "out" / "export.json").read_text())
    assert said == {"format": "gguf", "architecture": "llama", "precision": "fp32", "quantise": None, "perplexity_bar": None}
