"""Standard errors of metrics and of paired differences, against resampling and against the harness's own formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluate.harness.paired import difference_error, standard_error

N = 400
DRAW = np.random.default_rng(0)
HARD = DRAW.normal(0, 1, N)  # what makes a document hard for both models
WEIGHTS = DRAW.integers(20, 60, N).astype(float)


def losses(shift: float) -> list[tuple[float, float]]:
    per_byte = 1.0 + shift + 0.2 * HARD + DRAW.normal(0, 0.05, N)
    return [(-loss * weight, weight) for loss, weight in zip(per_byte, WEIGHTS, strict=True)]


FIRST, SECOND = losses(0.0), losses(0.1)
METRICS = {
    "weighted_perplexity": lambda v: math.exp(-v[:, 0].sum() / v[:, 1].sum()),
    "bits_per_byte": lambda v: -v[:, 0].sum() / v[:, 1].sum() / math.log(2),
}


@pytest.mark.parametrize("name", METRICS)
def test_errors_agree_with_resampling_of_documents(name):
    first, second, metric = np.asarray(FIRST), np.asarray(SECOND), METRICS[name]
    draws = [DRAW.integers(0, N, N) for _ in range(2000)]
    singles = [metric(first[index]) for index in draws]
    differences = [metric(second[index]) - metric(first[index]) for index in draws]
    assert standard_error(name, FIRST) == pytest.approx(np.std(singles), rel=0.1)
    assert difference_error(name, FIRST, SECOND) == pytest.approx(np.std(differences), rel=0.1)
    assert difference_error(name, FIRST, SECOND) < 0.6 * standard_error(name, FIRST)


def test_perplexity_of_log_likelihoods_agrees_with_resampling():
    values = [a / 40 for a, _ in FIRST]
    draws = [math.exp(-np.asarray(values)[DRAW.integers(0, N, N)].mean()) for _ in range(2000)]
    assert standard_error("perplexity", values) == pytest.approx(np.std(draws), rel=0.1)


def test_a_mean_has_the_textbook_error():
    first, second = [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]
    assert standard_error("mean", first) == pytest.approx(0.25)
    assert difference_error("mean", first, second) == pytest.approx(0.25)
    assert difference_error("mean", first, first) == 0.0


def test_no_error_where_none_is_known():
    assert standard_error("f1", [(1, 1), (0, 1)]) is None
    assert difference_error("f1", [(1, 1), (0, 1)], [(1, 1), (0, 1)]) is None
    assert standard_error("mean", [1.0]) is None
    assert difference_error("mean", [1.0, 0.0], [1.0]) is None
