"""How a process of the command line ends: signals become exceptions, once, and what it and its children made temporarily goes with it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.common.errors import ENDED, INTERRUPTED, Terminated, explain

_heard: BaseException | None = None  # the signal that was raised last, as an exception
CLEANING = 10.0  # seconds in which further signals are not heard: terminals and service managers send several


def ended_by_itself(command: Callable[[], object]) -> None:
    """Runs the command line; an interrupted one ends here and now.

    A signal may come while a library holds a lock that its threads wait for, and Python waits for those threads before it ends. By
    now every stage has cleaned up behind itself.
    """
    with _signals_raised(), _scratch():
        code = _code_of(command)
    if isinstance(code, int) and code in {INTERRUPTED, *ENDED.values()}:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a reader that went away
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def what_ended(error: BaseException) -> BaseException:
    """The signal that came, where there was one: a library that it falls into may make another error of it.

    torch asks an object for its length, say, and calls whatever is raised meanwhile a ValueError about its shape.
    """
    return error if _heard is None else _heard


def _code_of(command: Callable[[], object]) -> int | str | None:
    """The exit status of the command line; a signal that came where no verb runs is told of here."""
    try:
        command()
    except (Terminated, KeyboardInterrupt) as end:
        sentence, code = explain(end)
        with suppress(OSError, ValueError):
            print(f"error: {sentence}", file=sys.stderr)
        return code
    except SystemExit as end:
        return end.code
    return None


@contextmanager
def _signals_raised() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``Terminated`` in the main thread, as Ctrl-C raises ``KeyboardInterrupt``.

    Repetitions are not heard while what was begun is cleaned up. Processes that are forked off die of them as they would. What
    whoever started this one had ignored, such as SIGHUP under nohup, stays so.
    """
    global _heard  # noqa: PLW0603 - a process has one set of signals
    owner, heard = os.getpid(), -CLEANING
    _heard = None

    def hear(number: int, _: FrameType | None) -> None:
        global _heard  # noqa: PLW0603
        nonlocal heard
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif time.monotonic() - heard > CLEANING:
            heard, _heard = time.monotonic(), KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
            raise _heard

    before = {}
    for number in (signal.SIGINT, *map(signal.Signals, ENDED)):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard = None


@contextmanager
def _scratch() -> Iterator[None]:
    """A folder for all that this process and its children keep for a while, removed with whatever they left in it."""
    folder = tempfile.mkdtemp(prefix="trimline-")
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
