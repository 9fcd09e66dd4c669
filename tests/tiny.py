"""Tiny random models of every family, under the name that tests know; the table of types builds the same."""

from __future__ import annotations

from benchmarks.studies.types.tiny import (
    CONFIGS,
    GATED,
    MIXTURES,
    TINY_FAMILIES,
    TINY_MIXTURES,
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
    "MIXTURES",
    "TINY_FAMILIES",
    "TINY_MIXTURES",
    "TINY_TYPES",
    "TINY_WRAPPERS",
    "VOCAB",
    "random_model",
    "tiny_model",
    "tiny_tokenizer",
    "tiny_wrapped",
]
