import json
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters.onnx.lowering.config import stock_config
from exporters.onnx.lowering.rotary import rotary_tables, table_positions
from exporters.onnx.running.genai import GenaiDecoder
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import choose_lowering, export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.evaluate.gates import gate_tokens
from pipeline.live.loading import load_model
from tests.exporters.models import KV_GROUPS, OPTIONS, stock, uneven

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
THETA = {"rope_theta": 10000.0}
LINEAR = THETA | {"rope_type": "linear", "factor": 2.5}
DYNAMIC = THETA | {"rope_type": "dynamic", "factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 64}
LLAMA3 = THETA | ORIGINAL | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = THETA | ORIGINAL | {"rope_type": "yarn", "factor": 4.0}
OTHER_YARN = YARN | {"attention_factor": 1.3, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False}
PROPORTIONAL = THETA | {"rope_type": "proportional", "partial_rotary_factor": 0.5}
FACTORS = {"short_factor": [1 + n / 10 for n in range(8)], "long_factor": [2 + n / 2 for n in range(8)]}
LONGROPE = THETA | FACTORS | {"rope_type": "longrope"}
FIRST = 128  # tokens before longrope's angles change


def exported(checkpoint: Path, out: Path, lowering: str = "auto") -> tuple[Path, list[str]]:
    out.mkdir()
    events: list[Event] = []
    export(checkpoint, ExportSlice(lowering=lowering), OPTIONS, out, Events(events.append))
    return out, [event.text for event in events]


def check_at_once(checkpoint: Path, folder: Path, length: int) -> tuple[torch.Tensor, np.ndarray, OnnxDecoder]:
    """Logits of a text that is read at once; token ids, transformers' logits, and the decoder to go on with."""
    ids = gate_tokens(Checkpoint(checkpoint).geometry.vocab, rows=1, length=length)
    with torch.no_grad():
        reference = load_model(checkpoint, dtype=torch.float32)(ids, use_cache=False).logits.numpy()
    decoder = OnnxDecoder(folder, 1, every_position=True)
    np.testing.assert_allclose(decoder.logits(ids.numpy()), reference, atol=1e-4)
    return ids, reference, decoder


def check(checkpoint: Path, folder: Path, length: int) -> None:
    """Logits of a text as long as the model takes: read at once, continued from its middle, and in onnxruntime-genai."""
    ids, reference, decoder = check_at_once(checkpoint, folder, length)
    half = length // 2
    past, found = decoder.empty(1, 8), []
    for start, end in [(0, half), *((at, at + 1) for at in range(half, length))]:
        logits, past = decoder.step(ids[:, start:end].numpy(), past)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), reference, atol=1e-4)
    forced = GenaiDecoder(folder, 1).forced(ids[0, :half].tolist(), ids[0, half:-1].tolist())
    np.testing.assert_allclose(forced, reference[0, half - 1 : -1], atol=1e-4)


@pytest.mark.parametrize(
    ("family", "rotary"),
    [
        ("llama", LINEAR),
        ("mistral", LINEAR),
        ("qwen2", LLAMA3),
        ("mistral", LLAMA3),
        ("qwen2", YARN),
        ("qwen3", OTHER_YARN),
        ("llama", DYNAMIC),
        ("qwen3", PROPORTIONAL),
    ],
)
def test_scaled_angles_are_those_of_transformers_to_the_last_position(family, rotary, tmp_path):
    checkpoint = stock(family, tmp_path, rope_parameters=rotary)
    out, _ = exported(checkpoint, tmp_path / "out")
    assert OnnxDecoder(out, 1).lowering == "fused"
    check(checkpoint, out, 256)


def test_uneven_blocks_with_scaled_angles(tmp_path):
    checkpoint = uneven("qwen2", tmp_path, KV_GROUPS, rope_parameters=YARN)
    out, _ = exported(checkpoint, tmp_path / "out")
    assert OnnxDecoder(out, 1).lowering == "fused"
    check(checkpoint, out, 256)


def test_part_of_a_head_is_turned(tmp_path):
    half = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": THETA | {"partial_rotary_factor": 0.5}}
    checkpoint = stock("phi3", tmp_path, **half)
    out, _ = exported(checkpoint, tmp_path / "out")
    assert OnnxDecoder(out, 1).lowering == "fused"
    check(checkpoint, out, 256)


def test_too_few_channels_for_the_operator_are_refused(tmp_path):
    checkpoint = stock("phi3", tmp_path, rope_parameters=THETA | {"partial_rotary_factor": 0.5})
    with pytest.raises(TrimlineError, match=r"turns 8 channels of a head, and .* takes multiples of 16"):
        exported(checkpoint, tmp_path / "refused", "fused")
    assert not any((tmp_path / "refused").iterdir())


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_longrope_ends_where_its_angles_change(family, tmp_path):
    checkpoint = stock(family, tmp_path, rope_parameters=dict(LONGROPE), original_max_position_embeddings=FIRST)
    out, notes = exported(checkpoint, tmp_path / "out", "fused")
    assert any(f"ends after {FIRST} of this model's 256 tokens" in note for note in notes)
    config = json.loads((out / "genai_config.json").read_text())
    assert (config["model"]["context_length"], config["search"]["max_length"]) == (FIRST, FIRST)
    check(checkpoint, out, FIRST)
    with pytest.raises(TrimlineError, match="cos_cache"):
        OnnxDecoder(out, 1).logits(gate_tokens(128, length=FIRST + 1).numpy())


def test_longrope_whole_where_its_angles_do_not_change(tmp_path):
    checkpoint = stock("phi3", tmp_path, rope_parameters=dict(LONGROPE), original_max_position_embeddings=256)
    out, _ = exported(checkpoint, tmp_path / "out")
    assert OnnxDecoder(out, 1).lowering == "fused"
    check(checkpoint, out, 256)


def test_auto_takes_the_portable_graph_where_the_fused_one_ends_early(tmp_path):
    source = Checkpoint(stock("phi3", tmp_path, rope_parameters=dict(LONGROPE), original_max_position_embeddings=FIRST))
    notes: list[Event] = []
    assert choose_lowering(source, ExportSlice(), OPTIONS, Events(notes.append)) == "portable"
    assert any(f"portable lowering, because a fused graph ends after {FIRST}" in note.text for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rotary"),
    [
        ("llama", LINEAR),
        ("qwen2", LLAMA3),
        ("qwen2", YARN),
        ("qwen3", OTHER_YARN),
        ("qwen3", PROPORTIONAL),
        ("phi3", THETA | {"partial_rotary_factor": 0.5}),
    ],
    ids=["linear", "llama3", "yarn", "yarn-all", "proportional", "part"],
)
def test_scaled_angles_in_the_portable_graph(family, rotary, tmp_path):
    checkpoint = stock(family, tmp_path, rope_parameters=rotary)
    out, _ = exported(checkpoint, tmp_path / "out", "portable")
    assert OnnxDecoder(out, 1).lowering == "portable"
    check(checkpoint, out, 256)


@pytest.mark.slow
def test_the_portable_graph_of_longrope_reads_long_texts(tmp_path):
    checkpoint = stock("phi3", tmp_path, rope_parameters=dict(LONGROPE), original_max_position_embeddings=FIRST)
    out, _ = exported(checkpoint, tmp_path / "out")
    check_at_once(checkpoint, out, 256)


def test_portable_refuses_angles_that_follow_the_text(tmp_path):
    checkpoint = stock("llama", tmp_path, rope_parameters=DYNAMIC)
    with pytest.raises(TrimlineError, match="rotary embedding of type 'dynamic'"):
        exported(checkpoint, tmp_path / "out", "portable")
    assert not any((tmp_path / "out").iterdir())


def test_factors_of_another_number_are_a_sentence(tmp_path):
    checkpoint = stock("llama", tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    rotary = LONGROPE | {"short_factor": [1.0, 2.0, 3.0], "original_max_position_embeddings": FIRST}
    (checkpoint / "config.json").write_text(json.dumps(config | {"rope_parameters": rotary}))
    with pytest.raises(TrimlineError, match="cannot compute this model's rotary embedding"):
        exported(checkpoint, tmp_path / "out")


def test_tables_hold_half_of_the_turned_channels(tmp_path):
    source = Checkpoint(stock("llama", tmp_path, rope_parameters=LINEAR))
    config = stock_config(source)
    cosines, sines = rotary_tables(source.geometry.family, config)
    frequencies = 1 / (2.5 * 10000.0 ** (torch.arange(0, 16, 2) / 16))
    angles = torch.arange(table_positions(config))[:, None] * frequencies
    assert cosines.shape == sines.shape == (256, 8)
    torch.testing.assert_close(cosines, angles.cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sines, angles.sin(), atol=1e-4, rtol=0)


def test_long_factors_are_no_obstacle_where_heads_went(tmp_path):
    # The config class counts factors against hidden size / heads, which says nothing of blocks that have their own.
    checkpoint = uneven("phi3", tmp_path, (1, 0, 2, 1), rope_parameters=dict(LONGROPE), original_max_position_embeddings=256)
    out, _ = exported(checkpoint, tmp_path / "out")
    check(checkpoint, out, 256)
