"""Perplexity against its definition, and what cannot be evaluated."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import RESULT, evaluate, perplexity_record
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_model, load_tokenizer
from tests.tiny import TINY_FAMILIES, tiny_model

TEXT = "The quick brown fox jumps over the lazy dog, and then it rests in the shade of an old tree. " * 8
OPTIONS = RunOptions(dtype="float32", threads=1)


def evaluated(folder, tmp_path, **slice_):
    texts, out = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    out.mkdir()
    (texts / "evaluation.txt").write_text(TEXT)
    evaluate(folder, texts, EvaluateSlice(**slice_), OPTIONS, out, Events())
    return read_json(out / RESULT)


def by_hand(folder, windows: int, window: int) -> list[float]:
    """−mean log p(token | the tokens before it in its window), one probability at a time, in fp64."""
    model, ids = load_model(folder, dtype=torch.float64), load_tokenizer(folder)(TEXT)["input_ids"]
    losses = []
    for start in range(0, windows * window, window):
        tokens = torch.tensor(ids[start : start + window])
        with torch.inference_mode():
            probabilities = [model(tokens[None, :t]).logits[0, -1].softmax(-1)[tokens[t]].item() for t in range(1, window)]
        losses.append(-sum(map(math.log, probabilities)) / len(probabilities))
    return losses


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_perplexity_is_its_definition(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model")
    found, expected = evaluated(folder, tmp_path, windows=3, window=12), by_hand(folder, 3, 12)
    assert found["window_losses"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(expected) / 3), rel=1e-5)
    assert (found["window"], found["dtype"]) == (12, "float32")


def test_standard_error_by_the_delta_method():
    found = perplexity_record([1.0, 2.0, 3.0])
    assert found["perplexity"] == pytest.approx(math.exp(2))
    assert found["standard_error"] == pytest.approx(math.exp(2) * 1.0 / math.sqrt(3))
    assert perplexity_record([1.0])["standard_error"] is None


@pytest.mark.parametrize("losses", [[math.nan, 1.0], [math.inf], [900.0, 800.0]])
def test_a_loss_that_is_no_perplexity(losses):
    with pytest.raises(TrimlineError, match="predicts nothing"):
        perplexity_record(losses)


def test_a_text_that_is_too_short(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    with pytest.raises(TrimlineError, match=r"100 windows of 64 = 6,400 tokens; the text has \d+"):
        evaluated(folder, tmp_path, windows=100, window=64)


@pytest.mark.parametrize(("family", "kind"), [("opt", "learned positions"), ("llama", "positions")])
def test_positions_bound_the_window(tmp_path, family, kind):
    folder = tiny_model(family, tmp_path / "model", max_position_embeddings=32)
    with pytest.raises(TrimlineError, match=f"33 tokens .* 32 {kind}"):
        evaluated(folder, tmp_path, windows=1, window=33)


@pytest.mark.parametrize(
    ("said", "context"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024}}, 8192),
        ({"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "yarn", "factor": "many"}}, 8192),
        ({}, 0),
        ({"max_position_embeddings": None}, 0),
    ],
)  # fmt: skip
def test_the_context_is_what_a_stretched_embedding_reaches(said, context):
    sizes = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 4,
        "vocab_size": 9,
    }
    assert Geometry.from_config(sizes | said).context == context
