"""What one case may do: end in time, stay small, write where it may, start nothing, and succeed or refuse in a sentence."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.artefacts.artefact import PARTIAL
from pipeline.common.errors import TrimlineError

SECONDS = 10
MOST_BYTES = 2**30
CEILING = 3 * 2**30  # of addresses beyond those held at the start: what asks for more gets MemoryError, and the machine lives
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo"}
CHANGING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.utime"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SENTENCE = re.compile(r".*\S[.?!…)]\s*", re.DOTALL)


class Hang(BaseException):
    """A case took longer than it may; no ``except Exception`` catches this."""


class _Audit:
    """Python's audit hooks cannot be taken away again: one for the process, which listens while a case runs."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {str(arguments)[:200]}")
        elif event in CHANGING or (event == "open" and _writes(arguments)):
            self._judge(event, arguments)

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        # A link changes where it is made, not what it names.
        places = {"os.rename": arguments[:2], "os.link": arguments[1:2], "os.symlink": arguments[1:2]}.get(event, arguments[:1])
        for place in places:
            if not isinstance(place, (str, bytes, os.PathLike)):
                continue
            full = os.path.realpath(os.path.join(os.getcwd() if event == "open" else _folder(arguments[-1]), os.fsdecode(place)))
            if self.allowed is not None and full != os.devnull and not full.startswith(self.allowed):
                self.seen.append(f"{event} {full}")


def _folder(number: Any) -> str:
    """What a relative path is relative to: ``shutil.rmtree`` names files by an open folder's number, the last argument."""
    return os.readlink(f"/proc/self/fd/{number}") if isinstance(number, int) and number > 2 else os.getcwd()


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    return (isinstance(mode, str) and bool(set(mode) & set("wax+"))) or (isinstance(flags, int) and bool(flags & WRITING))


_audit: list[_Audit] = []


def judged(case: Callable[[Path], object], room: Path) -> str | None:
    """Runs one case and says what it did that it may not; None where it behaved.

    Args:
        case: is given the only folder that it may write into, ``room/out``.
        room: holds what the case reads; nothing else in it may change.
    """
    out = room / "out"
    before, peak, started = _listing(room), _Peak(), time.monotonic()
    complaint: str | None = None
    with _listening(out) as seen, _limited():
        try:
            case(out)
        except TrimlineError as error:
            complaint = _bad_sentence(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            where = "".join(traceback.format_exception(error)[-6:])
            complaint = f"{type(error).__name__}: {str(error)[:200]}\n{where[-1800:]}"
    taken = time.monotonic() - started
    if taken > SECONDS:
        complaint = f"took {taken:.1f} s; {complaint or ''}"
    if (grown := peak.grown()) > MOST_BYTES:
        complaint = f"took {grown >> 20} MiB; {complaint or ''}"
    if seen:
        complaint = f"{seen[:3]}; {complaint or ''}"
    if changed := set(before.items() ^ _listing(room).items()):
        complaint = f"changed {sorted(changed)[:3]} beside its output; {complaint or ''}"
    return complaint


def _bad_sentence(error: TrimlineError) -> str | None:
    problem, remedy = error.problem, error.remedy
    if not (SENTENCE.fullmatch(problem) and SENTENCE.fullmatch(remedy)):
        return f"no problem and remedy in sentences: {problem!r} {remedy!r}"
    return None if len(problem) + len(remedy) < 2000 else f"a sentence of {len(problem) + len(remedy)} characters"


def _listing(room: Path) -> dict[str, tuple[int, int]]:
    """Every file but those below ``out``, with size and time of change."""
    found = {}
    for folder, folders, files in os.walk(room):
        if folder == str(room) and "out" in folders:
            folders.remove("out")
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found[path] = (0, 0) if name in folders else (status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def _listening(out: Path) -> Iterator[list[str]]:
    if not _audit:
        _audit.append(_Audit())
    audit, scratch = _audit[0], os.path.realpath(tempfile.gettempdir())
    # Where libraries keep what a call needs for itself, and the folder that modelling files are copied to.
    beside = str(Path(os.path.realpath(out)).with_name(f"{PARTIAL}{out.name}"))
    audit.allowed = (os.path.realpath(out), beside, f"{scratch}/tmp", f"{scratch}/trimline-", "/dev/shm/")
    audit.seen = []
    try:
        yield audit.seen
    finally:
        audit.allowed = None


@contextmanager
def _limited() -> Iterator[None]:
    """Ends what computes too long, and refuses it memory beyond any need."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, _ring)
    resource.setrlimit(resource.RLIMIT_AS, (held + CEILING, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGPROF, handler)


def _ring(number: int, frame: FrameType | None) -> None:
    raise Hang(f"still computing after {SECONDS} s")


class _Peak:
    """Resident memory from here on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._start = _status("VmRSS")

    def grown(self) -> int:
        """Bytes that the peak lies above the start."""
        return _status("VmHWM") - self._start


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
