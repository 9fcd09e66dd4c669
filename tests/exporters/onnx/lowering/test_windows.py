import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from exporters.onnx.lowering.fused import fused_obstacle
from exporters.onnx.running.genai import GenaiDecoder
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice, Precision
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Event, Events
from pipeline.evaluate.gates import gate_tokens
from pipeline.live.loading import load_model
from pipeline.plan.selection import Selection
from tests.exporters.models import FFN, OPTIONS, rebuilt, stock

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
WINDOW, LENGTH = 16, 120
FULL, SLIDING = "full_attention", "sliding_attention"
TYPES = [FULL, SLIDING, SLIDING, FULL]
MIXED = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": TYPES}
EVERYWHERE = {"sliding_window": WINDOW}


def exported(checkpoint: Path, out: Path, precision: Precision = "fp32") -> Path:
    out.mkdir()
    events: list[Event] = []
    export(checkpoint, ExportSlice(precision=precision), OPTIONS, out, Events(events.append))
    assert OnnxDecoder(out, 1).lowering == "fused", [event.text for event in events]
    return out


def windows(folder: Path) -> list[int]:
    """Of every block with attention; -1 where there is none."""
    nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    attention = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "GroupQueryAttention"]
    assert not any("sliding_window_cache" in attributes for attributes in attention), "caches have the length of the text"
    return [attributes["local_window_size"] for attributes in attention]


def check_beyond_the_window(checkpoint: Path, folder: Path) -> None:
    """Logits of a text of several windows: read at once, continued in chunks and by steps, and in onnxruntime-genai."""
    ids = gate_tokens(Checkpoint(checkpoint).geometry.vocab, rows=2, length=LENGTH)
    model = load_model(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        reference = model(ids, use_cache=False).logits.numpy()
        greedy = model.generate(ids[:1, :40], max_new_tokens=40, do_sample=False, eos_token_id=None)[:, 40:].numpy()
    decoder = OnnxDecoder(folder, 1, every_position=True)
    np.testing.assert_allclose(decoder.logits(ids.numpy()), reference, atol=1e-4)
    past, found = decoder.empty(1, 8), []  # short at first: the cache grows on the way
    for start, end in [(0, 40), (40, 45), (45, 80), *((at, at + 1) for at in range(80, LENGTH))]:
        logits, past = decoder.step(ids[:1, start:end].numpy(), past)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), reference[:1], atol=1e-4)
    np.testing.assert_array_equal(decoder.greedy(ids[:1, :40].numpy(), 40), greedy)
    forced = GenaiDecoder(folder, 1).forced(ids[0, :40].tolist(), ids[0, 40:].tolist())
    np.testing.assert_allclose(forced, reference[0, 39:], atol=1e-4)
    assert genai_greedy(folder, ids[0, :40].tolist(), 40) == greedy[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["fused", "portable"])
def test_a_window_of_4096_and_a_text_beyond_it(lowering, tmp_path):
    """As wide as Mistral's: read at once, and one step after the other over its edge, where logits differ from those without a window."""
    window, length = 4096, 4160
    checkpoint = stock("mistral", tmp_path, sliding_window=window, max_position_embeddings=8192)
    (tmp_path / "out").mkdir()
    export(checkpoint, ExportSlice(lowering=lowering), OPTIONS, tmp_path / "out", Events())
    ids = gate_tokens(Checkpoint(checkpoint).geometry.vocab, rows=1, length=length)
    unbounded = stock("mistral", tmp_path / "unbounded", sliding_window=None, max_position_embeddings=8192)
    with torch.no_grad():
        reference, other = (
            load_model(folder, dtype=torch.float32)(ids, use_cache=False).logits.numpy() for folder in (checkpoint, unbounded)
        )
    np.testing.assert_allclose(reference[:, :window], other[:, :window], atol=1e-5)
    assert abs(reference - other)[:, window:].max() > 1e-3
    decoder = OnnxDecoder(tmp_path / "out", 1, every_position=True)
    np.testing.assert_allclose(decoder.logits(ids.numpy()), reference, atol=1e-4)
    first = window - 16
    past, found = decoder.empty(1, length), []
    for start, end in [(0, first), *((at, at + 1) for at in range(first, length))]:
        logits, past = decoder.step(ids[:, start:end].numpy(), past)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), reference, atol=1e-4)


def genai_greedy(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    decoder = GenaiDecoder(folder, 1)
    generator = decoder.empty(1, len(prompt) + tokens)
    generator.append_tokens(np.asarray(prompt, np.int32))
    for _ in range(tokens):
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("mistral", EVERYWHERE, [WINDOW, WINDOW]),
        ("phi3", EVERYWHERE, [WINDOW, WINDOW]),
        ("qwen2", MIXED, [-1, WINDOW, WINDOW, -1]),
        ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, [-1, WINDOW]),
        ("qwen2", {"use_sliding_window": False, "sliding_window": WINDOW}, [-1, -1]),
        ("mistral", {"sliding_window": 256}, [-1, -1]),  # as long as the longest text
    ],
)
def test_windows_are_those_of_transformers(family, settings, expected, tmp_path):
    checkpoint = stock(family, tmp_path, **settings)
    out = exported(checkpoint, tmp_path / "out")
    assert windows(out) == expected
    check_beyond_the_window(checkpoint, out)


def test_a_window_that_the_class_does_not_know_is_refused(tmp_path):
    checkpoint = Checkpoint(stock("llama", tmp_path, **EVERYWHERE))
    assert fused_obstacle(checkpoint) == "its config.json has a sliding window of 16 tokens, and LlamaConfig knows none"


def test_removed_blocks_take_their_windows_with_them(tmp_path):
    dense = stock("qwen2", tmp_path, **MIXED | {"num_hidden_layers": 5, "layer_types": [*TYPES, SLIDING]})
    ffn, kv_groups = (96, *FFN), (2, 1, 0, 2, 1)  # the first block goes; of the others the second has no attention
    kept = Selection((1, 2, 3, 4), tuple(tuple(range(n)) for n in ffn), tuple(tuple(range(n)) for n in kv_groups))
    checkpoint = rebuilt(dense, kept, tmp_path / "smaller")
    out = exported(checkpoint, tmp_path / "out")
    assert windows(out) == [WINDOW, -1, WINDOW]
    check_beyond_the_window(checkpoint, out)


@pytest.mark.parametrize("family", ["mistral", "phi3"])
def test_uneven_blocks_with_a_window(family, tmp_path):
    dense = stock(family, tmp_path, **EVERYWHERE | {"num_hidden_layers": 4})
    kept = Selection((0, 1, 2, 3), tuple(tuple(range(n)) for n in FFN), tuple(tuple(range(n)) for n in (0, 1, 2, 1)))
    checkpoint = rebuilt(dense, kept, tmp_path / "smaller")
    out = exported(checkpoint, tmp_path / "out")
    assert windows(out) == [WINDOW, WINDOW, WINDOW]
    check_beyond_the_window(checkpoint, out)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_fewer_bits_keep_the_window(precision, tmp_path):
    out = exported(stock("mistral", tmp_path, **EVERYWHERE), tmp_path / "out", precision)
    assert windows(out) == [WINDOW, WINDOW]
    seen = {alike: apart_at_the_end(OnnxDecoder(out, 1), alike) for alike in (WINDOW // 2, 2 * WINDOW)}
    assert seen[2 * WINDOW] < 1e-3, "two blocks see two windows, and no further"
    assert seen[WINDOW // 2] > 0.1


def apart_at_the_end(decoder: OnnxDecoder, alike: int) -> float:
    """Between the last logits of two texts whose last tokens are the same."""
    text = gate_tokens(128, rows=2, length=LENGTH)
    text[1, -alike:] = text[0, -alike:]
    logits = decoder.logits(text.numpy())[:, -1]
    return float(np.abs(logits[0] - logits[1]).max())


def test_genai_gets_a_cache_of_full_length(tmp_path):
    out = exported(stock("mistral", tmp_path, **EVERYWHERE), tmp_path / "out")
    config = json.loads((out / "genai_config.json").read_text())
    assert "sliding_window" not in config["model"]["decoder"]
    assert config["model"]["context_length"] == 256
    assert config["search"]["past_present_share_buffer"]
