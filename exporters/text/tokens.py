"""Whether a folder has a tokenizer, and whether the model knows its tokens: one rule for ONNX, GGUF and serving.

A token beyond the table of the model has no row there: transformers ends in an IndexError at it, ONNX Runtime in an error of its
Gather, and llama.cpp does not load such a file. So nothing is written, and nothing served, until the two fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.text.templates import check_template
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.live.loading import load_tokenizer

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model", "sentencepiece.bpe.model")
NAMED = 4  # tokens in a message


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds the vocabulary of any kind of tokenizer."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def check_text(source: Checkpoint, trust_remote_code: bool) -> None:
    """What an export looks at before it writes anything.

    Raises:
        TrimlineError: the tokenizer has tokens that the model does not know, or a chat template that does not render.
    """
    if not has_tokenizer(source.folder):
        return
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    check_tokens(tokenizer, source.geometry.vocab, source.folder)
    check_template(tokenizer, source.folder)


def check_tokens(tokenizer: Any, rows: int, folder: Path) -> None:
    """Demands a row of the token table for every token.

    Args:
        tokenizer: as transformers opens it.
        rows: of the token table.
        folder: for messages.

    Raises:
        TrimlineError: there are tokens without one; the first of them are named.
    """
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        named = ", ".join(f"{number} ({token!r})" for number, token in beyond[:NAMED]) + (", …" if len(beyond) > NAMED else "")
        raise TrimlineError(
            f"The tokenizer of {folder} has {len(beyond)} tokens that the model has no row for in its table of {rows}: {named}.",
            "Take these tokens out of the tokenizer's files, or give the model rows for them with transformers' resize_token_embeddings.",
        )
