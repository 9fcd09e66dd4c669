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
