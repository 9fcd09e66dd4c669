"""The child's end of ``pipeline.common.children``: replies to what the parent asks, and to nobody else."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TextIO

from pipeline.common.errors import TrimlineError

Record = dict[str, Any]


def answer_parent(answer: Callable[[Record], Record]) -> None:
    """Main of a child: replies to every request until the parent is done, and ends at once where the parent has ended.

    Args:
        answer: gives the reply to a request; a fault of ours ends the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole control group, say; the parent ends this process
        signal.signal(number, signal.SIG_IGN)
    replies, requests, busy = _replies_alone(), SimpleQueue[bytes | None](), threading.Event()
    threading.Thread(target=_read_parent, args=(requests, busy), daemon=True).start()
    while (line := requests.get()) is not None:
        reply = json.dumps(answer(json.loads(line)))
        sys.stdout.flush()  # what was printed meanwhile comes before the reply
        busy.clear()
        print(reply, file=replies, flush=True)


def answered(work: Callable[..., Record], **what: Any) -> Record:
    """The reply of some work; a user's error becomes a reply too."""
    try:
        return work(**what)
    except TrimlineError as error:
        return {"problem": error.problem, "remedy": error.remedy}


def _read_parent(requests: SimpleQueue[bytes | None], busy: threading.Event) -> None:
    """Hands on requests. Reads the descriptor, since a thread that waits inside ``sys.stdin`` hinders the interpreter's end."""
    unread = b""
    while received := os.read(0, 2**16):
        *lines, unread = (unread + received).split(b"\n")
        for line in lines:
            busy.set()
            requests.put(line)
    if busy.is_set():
        os._exit(1)
    requests.put(None)


def _replies_alone() -> TextIO:
    """Stdout for replies; what libraries print to descriptor 1 goes to stderr from here on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies
