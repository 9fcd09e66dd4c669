"""What is done around every route: the key is checked before a body is read, and every answer is counted."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.serve.errors import ApiError
from deploy.serve.metrics import Metrics

API = "/v1/"


class Guard:
    """ASGI middleware.

    Args:
        app: what it guards.
        key: demanded of every path under /v1/; None: no key.
        metrics: told about every request.
    """

    def __init__(self, app: ASGIApp, key: str | None, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counted(scope, send)
        if not scope["path"].startswith(API) or self._admits(Headers(scope=scope)):
            await self._app(scope, receive, counted)
            return
        error = ApiError(401, "The API key is missing or wrong.", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        self._metrics.errors.labels(error.code).inc()
        await error.response()(scope, receive, counted)

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
