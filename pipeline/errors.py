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
