"""What is done around the application: host, key and stated length are checked before a body is read, every answer is counted."""

from __future__ import annotations

import ipaddress
import secrets
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.serve.errors import TOO_LARGE, ApiError
from deploy.serve.metrics import Metrics

API = "/v1/"
LOCAL_NAME = "localhost"


class Guard:
    """ASGI middleware. A body that does not state its length is measured by the framework as it comes.

    Args:
        app: what it guards.
        key: demanded of every path under /v1/; None: no key.
        largest: bytes of a body.
        metrics: told about every request.
        local: only this machine can reach the server, so that requests that name another host are refused: a page of a stranger,
            whose name was made to lead here (DNS rebinding), asks so.
    """

    def __init__(self, app: ASGIApp, key: str | None, largest: int, metrics: Metrics, local: bool = False) -> None:
        self._app, self._largest, self._metrics, self._local = app, largest, metrics, local
        self._keys = None if key is None else _encodings(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counted(scope, send)
        if (error := self._objection(scope)) is None:
            await self._app(scope, receive, counted)
            return
        self._metrics.errors.labels(error.code or str(error.status)).inc()
        await error.response()(scope, receive, counted)

    def _objection(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._local and (strange := next((host for host in headers.getlist("host") if not is_local(host)), None)) is not None:
            said = f"This server listens on this machine only, and is asked for the host {strange[:100]!r}: ask for localhost or 127.0.0.1."
            return ApiError(421, f"{said} A proxy in front of it must name one of them, or `--host` another address.", "wrong_host")
        if scope["path"].startswith(API) and not self._admits(scope):
            return ApiError(401, "The API key is missing or wrong.", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._largest:
            return ApiError(413, f"The body has {stated} bytes; at most {self._largest} are read.", TOO_LARGE)
        return None

    def _admits(self, scope: Scope) -> bool:
        if self._keys is None:
            return True
        header: bytes = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, given = header.partition(b" ")
        # Both are compared whole, so that the time says nothing.
        right = [secrets.compare_digest(given.strip(), key) for key in self._keys]
        return scheme.lower() == b"bearer" and any(right)

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's pattern, since paths that do not exist must not fill the memory with labels.
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        return counted


def is_local(host: str) -> bool:
    """Whether a ``Host`` header, with or without a port, names this machine by a name or number that nobody else can give out."""
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    name = name.strip("[]").rstrip(".").lower()
    if name == LOCAL_NAME or name.endswith(f".{LOCAL_NAME}"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _encodings(key: str) -> tuple[bytes, ...]:
    """A key as clients send it: in UTF-8 (curl), or in Latin-1 (Python's clients)."""
    found = [key.encode("utf-8", "surrogateescape")]
    with suppress(UnicodeEncodeError):
        found.append(key.encode("latin-1"))
    return tuple(found)
