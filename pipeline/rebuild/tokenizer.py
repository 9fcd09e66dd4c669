"""The tokenizer of a result whose config has another model type than the source's."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json
from pipeline.evaluate.tokenizers import makes_tokens
from pipeline.live.loading import load_tokenizer

SETTINGS = "tokenizer_config.json"
CLASS = "tokenizer_class"


def name_tokenizer_class(source: Path, out: Path, trust_remote_code: bool = False) -> None:
    """Has ``out`` name the class that transformers opens the source's tokenizer with, where it would take another one.

    For some model types transformers takes a class of its own choice, whatever tokenizer_config.json says, and that class
    splits texts in its own way (5.23: a ``qwen2`` that names ``LlamaTokenizer``). A result of another model type would be
    split as the file says instead.
    """
    try:
        theirs = load_tokenizer(source, trust_remote_code=trust_remote_code)
        ours = load_tokenizer(out, trust_remote_code=trust_remote_code)
    except TrimlineError:  # there is none, or it needs code; the gate says so
        return
    if type(ours).__name__ != type(theirs).__name__ and makes_tokens(theirs):
        settings = read_json(out / SETTINGS) if (out / SETTINGS).exists() else {}
        write_json(out / SETTINGS, settings | {CLASS: type(theirs).__name__})
