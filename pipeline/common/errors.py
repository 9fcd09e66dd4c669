"""Errors that a user can cause. Each is one clear sentence and what to do about it; the command line prints no traceback."""

from __future__ import annotations

import errno
import os
import signal


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


INTERRUPTED, INTERNAL = 130, 70
ENDED = {number: 128 + number for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")) if number}  # as shells say


class Terminated(SystemExit):
    """A signal asked this process to end; whatever is being done cleans up behind itself, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(ENDED[signal.Signals(number)])
        self.number = signal.Signals(number)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for anything that can go wrong."""
    if full := _full_disk(error):
        return _explain_system(full), 2
    match error:
        case TrimlineError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "Interrupted. Finished stages are kept; the same command goes on from there.", INTERRUPTED
        case Terminated():
            return f"Ended by {error.number.name}. Finished stages are kept; the same command goes on from there.", 128 + error.number
        case MemoryError():
            return "There is not enough memory. Use fewer or shorter windows, or a machine with more.", 2
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_system(error), 2
    what = " ".join(str(error).split())[:300]
    return f"Something went wrong inside ({type(error).__name__}: {what}). Run again with --debug and report what it shows.", INTERNAL


def _full_disk(error: BaseException | None) -> OSError | None:
    """The lack of space behind an error; what the safetensors and ONNX writers raise is no OSError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        for number in FULL:
            if os.strerror(number) in str(error):
                return OSError(number, "")
        error = error.__cause__
    return None


def _explain_system(error: OSError) -> str:
    place = f" at {error.filename}" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk is full{place}. Nothing half-written was left; free some space and run the same command again."
        case errno.EFBIG:
            return (
                f"A file grew beyond what a limit or the file system allows{place}. Nothing half-written was left; raise it and run again."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"There is no permission to write or read{place}. Name another output folder or change its permissions."
        case _:
            return f"{os.strerror(error.errno or 0)}{place}. Check that place and run the same command again."
