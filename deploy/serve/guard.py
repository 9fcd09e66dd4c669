"""What is done around the application: key and stated length are checked before a body is read, every answer is counted."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.serve.errors import TOO_LARGE, ApiError
from deploy.serve.metrics import Metrics

API = "/v1/"


class Guard:
    """ASGI middleware. A body that does not state its length is measured by the framework as it comes.

    Args:
        app: what it guards.
        key: demanded of every path under /v1/; None: no key.
        largest: bytes of a body.
        metrics: told about every request.
    """

    def __init__(self, app: ASGIApp, key: str | None, largest: int, metrics: Metrics) -> None:
        self._app, self._largest, self._metrics = app, largest, metrics
        self._key = None if key is None else key.encode()

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
        if scope["path"].startswith(API) and not self._admits(headers):
            return ApiError(401, "The API key is missing or wrong.", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self._largest:
            return ApiError(413, f"The body has {stated} bytes; at most {self._largest} are read.", TOO_LARGE)
        return None

    def _admits(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._key)

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's pattern, since paths that do not exist must not fill the memory with labels.
                path = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        return counted
