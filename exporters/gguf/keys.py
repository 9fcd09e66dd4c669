"""What the keys of a GGUF say beside sizes: tokens, what ends a text, the template; read by gguf, against the checkpoint as transformers opens it."""

from __future__ import annotations

from typing import Any

import gguf

from exporters.positions import promised
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.live.loading import load_tokenizer

REPORT = "This is a fault of the conversion; please report it."
ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}


def compare_keys(source: Checkpoint, reader: gguf.GGUFReader, arch: str) -> int:
    """Compares tokens by id, special tokens, what is put around a text, the template and the context.

    Returns:
        How many tokens there are.

    Raises:
        GateError: one differs; it is named.
    """
    tokenizer = load_tokenizer(source.folder)
    tokens = _key(reader, "tokenizer.ggml.tokens")
    for token, number in tokenizer.get_vocab().items():
        if number >= len(tokens) or tokens[number] != token:
            found = tokens[number] if number < len(tokens) else None
            raise GateError(f"The GGUF has {found!r} for token {number}, and the checkpoint {token!r}.", REPORT)
    template = tokenizer.chat_template
    expected: dict[str, Any] = {f"{role}_token_id": getattr(tokenizer, name) for role, name in ROLES.items()}
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    before, behind = whole[:1] != bare[:1], whole[-1:] != bare[-1:]
    expected |= {
        "add_bos_token": before and whole[0] == tokenizer.bos_token_id,
        "add_eos_token": behind and whole[-1] == tokenizer.eos_token_id,
    }
    expected["chat_template"] = template.get("default") if isinstance(template, dict) else template or None
    for key, value in expected.items():
        place = "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"
        if (found := _key(reader, place)) != value:
            raise GateError(f"The GGUF says {place} = {found!r}, and the checkpoint {value!r}.", REPORT)
    stated = source.config.get("max_position_embeddings")
    if stated is not None and (context := _key(reader, f"{arch}.context_length")) > promised(int(stated)):
        raise GateError(f"The GGUF promises {context} positions, and the checkpoint {stated}.", REPORT)
    return len(tokens)


def _key(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()
