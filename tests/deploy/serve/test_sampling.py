"""What reaches the runtime's sampler, and that the sampler does what was asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.serve.compute.continuation import Runtime
from deploy.serve.sampling import Sampling
from exporters.onnx.running.genai import GenaiDecoder

DRAWS, VOCABULARY = 2000, 104
PROMPT = [5, 6, 7, 50]


@pytest.mark.parametrize("asked", [Sampling(temperature=0), Sampling(top_p=0), Sampling(top_k=1), Sampling(temperature=0, seed=1)])
def test_asking_for_the_most_likely_token_samples_nothing(asked: Sampling) -> None:
    assert asked.options({}, 20) == {"max_length": 20, "min_length": 0, "do_sample": False}


def test_the_folder_says_what_the_request_does_not() -> None:
    folder = {"temperature": 0.2, "top_p": 0.9, "top_k": 40}
    told = Sampling().options(folder, 20)
    assert (told["temperature"], told["top_p"], told["top_k"]) == (0.2, 0.9, 40)
    told = Sampling(temperature=1, top_p=0.5, top_k=0).options(folder, 20)
    assert (told["temperature"], told["top_p"], told["top_k"]) == (1, 0.5, 0)
    assert (Sampling().options({}, 20)["top_k"], Sampling(top_k=-1).options(folder, 20)["top_k"]) == (0, 0)


def test_every_seed_of_the_protocol_is_one_of_the_runtime() -> None:
    seeds = [Sampling(seed=seed).options({}, 20)["random_seed"] for seed in (0, 7, 2**40 + 3, -1)]
    assert seeds == [0, 7, 3, 2**31 - 1]


def test_an_ignored_end_cannot_come_before_the_limit() -> None:
    assert Sampling(ignore_end=True).options({}, 20)["min_length"] == 20


@pytest.fixture(scope="module")
def runtime(tiny_onnx: Path) -> Runtime:
    return Runtime(tiny_onnx, 1)


def wanted(logits: NDArray[np.float64], temperature: float, top_p: float, top_k: int) -> NDArray[np.float64]:
    """Probabilities by the definitions: softmax, then the most likely top_k, then the fewest of these that reach top_p."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-weights)
    if top_k > 0:
        weights[order[top_k:]] = 0
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= top_p * weights.sum()]] = 0
    return weights / weights.sum()


def distance(probabilities: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Total variation."""
    return float(np.abs(probabilities - counts / counts.sum()).sum() / 2)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.0, 0.5, 0), (0.5, 0.8, 0), (1.0, 1.0, 3), (0.7, 0.6, 20)]
)
def test_tokens_come_as_often_as_they_should(runtime: Runtime, tiny_onnx: Path, temperature: float, top_p: float, top_k: int) -> None:
    logits = GenaiDecoder(tiny_onnx).forced(PROMPT, [])[0].astype(np.float64)
    drawn: Counter[int] = Counter()
    for seed in range(DRAWS):
        asked = Sampling(temperature, top_p, top_k, seed).options({}, len(PROMPT) + 1)
        chosen = runtime.begin(PROMPT, asked).step()
        assert chosen is not None
        drawn[chosen[0]] += 1
    counts = np.array([drawn[token] for token in range(VOCABULARY)], float)
    probabilities = wanted(logits, temperature, top_p, top_k)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(probabilities))
    chance = [distance(probabilities, np.random.default_rng(seed).multinomial(DRAWS, probabilities)) for seed in range(20)]
    assert distance(probabilities, counts) < max(chance) + 0.03
