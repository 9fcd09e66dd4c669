"""Errors that a user can cause. Each is one clear sentence and what to do about it; the command line prints no traceback."""

from __future__ import annotations


class TrimlineError(Exception):
    """Something the user can mend.

    Args:
        problem: one sentence that says what is wrong, with names and numbers.
        remedy: one sentence that says what to do.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem if not remedy else f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class GateError(TrimlineError):
    """Two forms of the same model disagree by more than their bar; the stage that made the second form fails."""

    exit_code = 3


def shortened(text: str, most: int = 60) -> str:
    """Text for a sentence: what is longer than ``most`` characters ends in an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def shown(value: object, most: int = 60) -> str:
    """A value that somebody gave, for a sentence; numbers of thousands of digits too, which have no decimal form."""
    try:
        return shortened(repr(value), most)
    except ValueError:
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__} with a huge number"
