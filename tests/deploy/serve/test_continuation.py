"""A text's cache grows with it, its prompt is read in pieces, and what does not fit is said in the words of the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.serve.compute.choosing import Chooser, chances
from deploy.serve.compute.continuation import ROOM, Continuation, Runtime
from exporters.onnx.running.buffers import Buffers
from exporters.onnx.running.session import OnnxDecoder
from pipeline.common.errors import TrimlineError
from tests.deploy.serve.conftest import CONTEXT

ENDLESS = {"do_sample": False, "max_length": CONTEXT, "min_length": CONTEXT}


@pytest.fixture(scope="module")
def runtime(tiny_onnx: Path) -> Runtime:
    return Runtime(tiny_onnx, 1)


def continued(text: Continuation, tokens: int) -> list[int]:
    found: list[int] = []
    while len(found) < tokens:
        if chosen := text.step():
            found.append(chosen[0])
    return found


def test_a_text_that_outgrows_its_cache_goes_on_as_in_one_that_was_large_from_the_start(runtime: Runtime, tiny_onnx: Path) -> None:
    prompt = np.random.default_rng(0).integers(5, 100, 3 * runtime.piece // 2).tolist()
    text, tokens = runtime.begin(prompt, ENDLESS), ROOM + 80
    found = continued(text, tokens)
    wanted = OnnxDecoder(tiny_onnx, 1).greedy([prompt], tokens)[0].tolist()
    assert found == wanted
    assert len(set(wanted)) > 10, "a text of few tokens would show little"


def test_the_cache_is_as_large_as_the_text_and_not_as_the_limit(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    reserve = Buffers.reserve

    def watched(self: Buffers, needed: int, length: int) -> None:
        reserve(self, needed, length)
        sizes.append(self.capacity)

    monkeypatch.setattr(Buffers, "reserve", watched)
    continued(runtime.begin([5, 6, 7], ENDLESS), 1)
    assert max(sizes) < 2 * (3 + ROOM) < CONTEXT / 4
    sizes.clear()
    continued(runtime.begin([5, 6, 7], ENDLESS | {"max_length": 10}), 1)
    assert max(sizes) < ROOM, "less where the limit is lower"


def test_what_does_not_fit_is_said_in_words_of_the_protocol(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrimlineError, match=r"has 4,096 positions\. Lower max_tokens\."):
        runtime.begin([5], ENDLESS | {"max_length": CONTEXT + 1})
    for error in (MemoryError(), TrimlineError("ONNX Runtime failed on the graph: Failed to allocate memory", "")):
        monkeypatch.setattr(runtime.decoder, "run", _raiser(error))
        with pytest.raises(TrimlineError, match=r"no memory left for a text of 3 tokens, whose cache takes 0 MiB\. Ask .* max_tokens"):
            runtime.begin([5, 6, 7], ENDLESS).step()
    monkeypatch.setattr(runtime.decoder, "run", _raiser(TrimlineError("ONNX Runtime failed on the graph: no such shape", "")))
    with pytest.raises(TrimlineError, match="no such shape"):
        runtime.begin([5, 6, 7], ENDLESS).step()


def _raiser(error: Exception) -> Any:
    def run(*_: object) -> None:
        raise error

    return run


def test_logits_stay_those_of_the_model(runtime: Runtime, tiny_onnx: Path) -> None:
    text = runtime.begin([5, 6, 7], ENDLESS | {"do_sample": True, "temperature": 0.1, "top_k": 3, "top_p": 0.5})
    assert text.step() is not None
    np.testing.assert_allclose(text.logits, OnnxDecoder(tiny_onnx, 1).logits(np.array([[5, 6, 7]]))[0, -1], atol=1e-5)


def test_repeated_tokens_are_penalised_as_transformers_does_and_ends_wait_for_their_time() -> None:
    logits = np.array([1.0, 4.0, 3.9, -1.0], np.float32)
    greedy = {"do_sample": False, "min_length": 3}
    assert Chooser(greedy, [0], []).choose(logits, 5) == 1
    assert Chooser(greedy, [1], [], 1.1).choose(logits, 5) == 2, "4 / 1.1 is below 3.9"
    once = Chooser(greedy, [], [], 1.1)
    assert [once.choose(logits, length) for length in (5, 6)] == [1, 2], "what was chosen counts too"
    assert Chooser(greedy, [3], [], 2.0).choose(np.array([-3.0, -3.0, -1.9, -1.0], np.float32), 5) == 2, "-1 × 2 is below -1.9"
    assert [Chooser(greedy, [], [1, 99]).choose(logits, length) for length in (2, 3)] == [2, 1]
    with pytest.raises(ValueError, match="not finite"):
        Chooser(greedy, [], []).choose(np.array([1, np.nan], np.float32), 5)


def test_shares_of_a_large_vocabulary_are_those_of_the_definition() -> None:
    scores = np.random.default_rng(0).normal(size=5000)
    for scale, top_p in ((0.1, 0.9), (10.0, 0.5)):  # flat: more tokens than are sorted first; steep: a few
        tokens, shares = chances(scale * scores, 1.0, 0, top_p)
        weights = np.exp(scale * scores)
        order = np.argsort(-weights)
        wanted = order[: np.searchsorted(np.cumsum(weights[order]), top_p * weights.sum()) + 1]
        assert set(tokens) == set(wanted)
        np.testing.assert_allclose(shares.sum(), 1)
