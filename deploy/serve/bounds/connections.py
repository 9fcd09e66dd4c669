"""Clients that keep a connection and do nothing: each may do so for a while.

uvicorn has no such limits. It waits for a request's head and body, and for a client that reads nothing, as long as the
connection lasts; on the way out too, and its own limit there ends tasks but not connections.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WRITE_BUFFER = 2**13  # bytes of an answer that wait in this process for a client to read on
SOCKET_BUFFER = 2**15  # bytes that wait in the system; left to itself it takes megabytes, hours of text at some models' pace


@dataclass(frozen=True)
class Patience:
    """How long clients are waited for.

    Attributes:
        read: seconds for the head and the body of a request.
        write: seconds in which a client reads nothing of what waits for it.
    """

    read: float = 30.0
    write: float = 30.0


class Connections:
    """Looks at connections from time to time, and cuts those whose client was waited for too long.

    Args:
        patience: how long that is.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._seen: dict[Any, tuple[object, float]] = {}

    def look(self, connections: Iterable[Any], patience: Patience | None = None) -> None:
        """Cuts what is over its time.

        Args:
            connections: uvicorn's protocols, those that are open.
            patience: another than usual.
        """
        patience, now = patience or self._patience, time.monotonic()
        before, self._seen = self._seen, {}
        for connection in list(connections):
            waits = waits_for(connection)
            if connection not in before:
                connection.transport.set_write_buffer_limits(high=WRITE_BUFFER)
            same, since = before.get(connection, (None, now))
            since = since if same == waits else now
            self._seen[connection] = waits, since
            if waits is not None and now - since > (patience.write if waits[0] == "write" else patience.read):
                connection.transport.abort()


def waits_for(connection: Any) -> tuple[str, object] | None:
    """What of its client a connection waits for, equal as long as nothing comes of it; None: for nothing."""
    if size := connection.transport.get_write_buffer_size():
        return "write", size
    cycle = connection.cycle
    if cycle is None or cycle.response_complete or cycle.more_body:
        return "read", cycle
    return None


def cut(connections: Iterable[Any]) -> None:
    """Ends connections without waiting for anything that is still to be sent."""
    for connection in list(connections):
        connection.transport.abort()
