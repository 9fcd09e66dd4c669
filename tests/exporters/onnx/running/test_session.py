from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from exporters.onnx import runtime
from exporters.onnx.files import save_graph
from exporters.onnx.lowering.fused import lower_fused
from exporters.onnx.running import providers
from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.runtime import CPU
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.gates import gate_tokens
from tests.exporters.models import stock

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("session")
    save_graph(lower_fused(Checkpoint(stock("llama", place)), "fp32", Events()), place, "fused")
    return place


@pytest.fixture(scope="module")
def decoder(folder):
    return OnnxDecoder(folder, 1)


def test_steps_chunks_and_one_run_agree(decoder):
    ids = gate_tokens(128, rows=2, length=24).numpy()
    whole = decoder.logits(ids)
    for pieces, rows in (([(0, 7), *((at, at + 1) for at in range(7, 24))], 2), ([(0, 5), (5, 6), (6, 24)], 1)):
        past, found = decoder.empty(rows), []
        for start, end in pieces:
            logits, past = decoder.step(ids[:rows, start:end], past)
            found.append(logits)
        np.testing.assert_allclose(np.concatenate(found, 1), whole[:rows], atol=1e-5)
        assert past.length == 24


def test_buffers_grow_without_losing_the_past(decoder):
    prompt = gate_tokens(128, rows=1, length=4).numpy()
    logits, past = decoder.step(prompt, decoder.empty(1, 4))
    text = prompt
    for _ in range(150):  # past the first capacity twice
        text = np.concatenate([text, logits[:, -1:].argmax(-1)], 1)
        logits, past = decoder.step(text[:, -1:], past)
    np.testing.assert_allclose(logits[:, -1], decoder.logits(text)[:, -1], atol=1e-5)


def test_a_past_can_be_continued_again(decoder):
    ids = gate_tokens(128, rows=1, length=9).numpy()
    _, past = decoder.step(ids[:, :8], decoder.empty())
    first, _ = decoder.step(ids[:, 8:], past)
    again, _ = decoder.step(ids[:, 8:], past)
    np.testing.assert_array_equal(first, again)


def greedy_without_cache(decoder, ids, tokens):
    """Reads the whole text anew for each token."""
    text = np.asarray(ids, np.int64)
    for _ in range(tokens):
        text = np.concatenate([text, decoder.logits(text)[:, -1:].argmax(-1)], axis=1)
    return text[:, -tokens:]


def test_greedy_of_ragged_prompts(decoder):
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
    together = decoder.greedy(prompts, 10)
    alone = np.concatenate([decoder.greedy([prompt], 10) for prompt in prompts])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(alone[1:2], greedy_without_cache(decoder, prompts[1:2], 10))


def test_several_tokens_for_several_rows_after_a_past_are_refused(decoder):
    ids = gate_tokens(128, rows=2, length=6).numpy()
    _, past = decoder.step(ids[:, :3], decoder.empty(2))
    with pytest.raises(TrimlineError, match="one token at a time"):
        decoder.step(ids[:, 3:], past)


def test_logits_outlive_the_next_step(decoder):
    ids = gate_tokens(128, rows=1, length=3).numpy()
    first, past = decoder.step(ids[:, :1], decoder.empty())
    kept = first.copy()
    decoder.step(ids[:, 1:2], past)
    np.testing.assert_array_equal(first, kept)


def test_a_processor_is_not_asked_where_its_nodes_run(folder, monkeypatch):
    monkeypatch.setattr(providers, "places", lambda _: pytest.fail("it was asked"))
    assert OnnxDecoder(folder, 1, "cpu").session.get_providers() == [CPU]


def test_a_broken_graph_and_a_missing_one(tmp_path):
    with pytest.raises(TrimlineError, match=r"no model\.onnx"):
        OnnxDecoder(tmp_path, 1)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(TrimlineError, match="cannot open"):
        OnnxDecoder(tmp_path, 1)


@pytest.mark.parametrize(("installed", "problem"), [((), "not installed"), (("onnxruntime", "onnxruntime-gpu"), "both installed")])
def test_needs_exactly_one_runtime(installed, problem, monkeypatch):
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(runtime, "version", version)
    with pytest.raises(TrimlineError, match=problem):
        runtime.needs_runtime()
