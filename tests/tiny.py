"""Tiny random models of every family, under the name that tests know; the table of types builds the same."""

from __future__ import annotations

from benchmarks.studies.types.tiny import (
    CONFIGS,
    GATED,
    TINY_FAMILIES,
    TINY_TYPES,
    TINY_WRAPPERS,
    VOCAB,
    random_model,
    tiny_model,
    tiny_tokenizer,
    tiny_wrapped,
)

__all__ = [
    "CONFIGS",
    "GATED",
    "TINY_FAMILIES",
    "TINY_TYPES",
    "TINY_WRAPPERS",
    "VOCAB",
    "random_model",
    "tiny_model",
    "tiny_tokenizer",
    "tiny_wrapped",
]
