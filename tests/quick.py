"""Which of many like cases run every time: the others are marked slow, so that the suite stays within its minutes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def quick_alone(cases: Iterable[Any], quick: Collection[Any], unpacked: bool = False, ids: Callable[[Any], str] | None = None) -> list[Any]:
    """The cases as parameters, all but those in ``quick`` marked slow.

    Args:
        cases: one value each; or tuples of arguments where ``unpacked``.
        quick: those that run every time; all are cases.
        ids: a name from a case.
    """
    cases = list(cases)
    assert all(case in cases for case in quick), "a quick case is none of the cases"
    return [
        pytest.param(
            *(case if unpacked else (case,)), marks=() if case in quick else (pytest.mark.slow,), id=None if ids is None else ids(case)
        )
        for case in cases
    ]


# Types that have what the others have, between them: norms before, behind, shared and over all heads, a rotary per kind of block or none in some,
# multipliers, soft caps, scalars in an FFN, plain FFNs, every kind of mixer and of router.
UNLIKE = (
    *("apertus", "cohere2", "gemma2", "gemma3_text", "granite", "hunyuan_v1_dense", "nemotron", "olmo2", "phi", "smollm3", "starcoder2"),
    *("falcon_h1", "granitemoehybrid", "lfm2", "minicpm3", "nemotron_h", "qwen3_5_text"),
    *("deepseek_v3", "glm4_moe", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_next"),
)


def some_types(names: Iterable[str]) -> list[Any]:
    """Types as parameters, all but those of ``UNLIKE`` marked slow."""
    names = list(names)
    return quick_alone(names, [name for name in names if name in UNLIKE])


def some_families(names: Iterable[str]) -> list[Any]:
    """Of the first types those that differ: biases, fused projections, learned positions. Mistral and Qwen3 are marked slow."""
    names = list(names)
    return quick_alone(names, [name for name in names if name not in ("mistral", "qwen3")])
