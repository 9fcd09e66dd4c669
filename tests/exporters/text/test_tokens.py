"""A tokenizer with tokens that the model has no row for is refused by one rule, before anything is written or served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from deploy.serve.model import ServedModel
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from exporters.text.tokens import check_tokens, has_tokenizer
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.exporters.models import OPTIONS, stock

NAMED = r"has 2 tokens that the model has no row for in its table of 104: 104 \('<new>'\), 105 \('<newer>'\)\..*resize_token_embeddings"


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 104 rows, and a tokenizer that was given two tokens more."""
    folder = stock("llama", tmp_path_factory.mktemp("larger"), vocab_size=104)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_tokens(tokenizer, 104, folder)
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(folder)
    return folder


def test_onnx(larger: Path, tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match=NAMED):
        export(larger, ExportSlice(), OPTIONS, tmp_path, Events())
    assert not list(tmp_path.iterdir())


def test_gguf(larger: Path, tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match=NAMED):
        export_gguf(larger, GgufSlice(), OPTIONS, tmp_path, Events())
    assert not list(tmp_path.iterdir())


def test_serve(larger: Path) -> None:
    stated = {"model": {"context_length": 256, "vocab_size": 104, "eos_token_id": 2}}
    (larger / "genai_config.json").write_text(json.dumps(stated), encoding="utf-8")
    with pytest.raises(TrimlineError, match=NAMED):
        ServedModel(larger)


@pytest.mark.parametrize(("name", "expected"), [("vocab.txt", True), ("tekken.json", True), ("tokenizer_config.json", False)])
def test_a_vocabulary_of_any_kind_is_a_tokenizer(name: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert has_tokenizer(tmp_path) is expected
