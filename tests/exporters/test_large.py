"""A decoder beyond the 2 GiB that one protobuf message may have: its weights lie beside the graph, some beyond 2^31 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch

from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from tests.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
LIMIT = 2**31
PROMPT = [5, 60, 71, 8, 99, 10, 23]
TOKENS = 4
# Few blocks, and an embedding and a head of 1 GiB each, which nothing may turn over or copy into the graph.
SIZES = {"vocab_size": 131_072, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 2, "tie_word_embeddings": False}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A folder that goes away at once: pytest keeps those of three runs, and these files are large."""
    with tempfile.TemporaryDirectory(prefix="trimline-large-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def large(room: Path) -> tuple[Path, np.ndarray, list[int]]:
    """A checkpoint, torch's logits after the prompt, (vocabulary,), and the tokens that follow; torch's model is gone by then."""
    folder = tiny_model("llama", room / "model", **SIZES, **HEADS)
    assert 4 * Checkpoint(folder).geometry.total_parameters() > LIMIT
    model, ids = load_model(folder, dtype=torch.float32), torch.tensor([PROMPT])
    with torch.inference_mode():
        logits = model(ids).logits[0, -1].numpy()
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return folder, logits, said[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("lowering", ["fused", "portable"])
def test_more_than_two_gigabytes_are_written_and_opened(
    lowering: Literal["fused", "portable"], large: tuple[Path, np.ndarray, list[int]], room: Path
) -> None:
    if lowering == "fused":
        pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    checkpoint, logits, tokens = large
    with tempfile.TemporaryDirectory(dir=room) as place:
        out = Path(place)
        export(checkpoint, ExportSlice(lowering=lowering), RunOptions(), out, Events())
        assert (out / "model.onnx.data").stat().st_size > LIMIT
        assert (out / "model.onnx").stat().st_size < 2**20
        assert max(ends(out / "model.onnx")) > LIMIT
        decoder = OnnxDecoder(out, RunOptions().threads)
        assert decoder.lowering == lowering
        found = decoder.logits(np.asarray([PROMPT]))[0, -1]
        assert np.abs(found - logits).max() < 1e-4 * np.abs(logits).max()
        assert decoder.greedy(np.asarray([PROMPT]), TOKENS)[0].tolist() == tokens


def ends(graph: Path) -> list[int]:
    """Where the weights end in their file."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    places = [{entry.key: int(entry.value) for entry in tensor.external_data if entry.key in ("offset", "length")} for tensor in tensors]
    return [place.get("offset", 0) + place["length"] for place in places if place]
