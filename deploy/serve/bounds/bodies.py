"""A time limit for the body of a request, which ends in an answer and not only in a cut connection."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: a request whose body has not come in time is answered with a 408.

    Args:
        app: what it guards.
        seconds: from the request's head to the end of its body.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _within(receive, self._seconds)
        await self._app(scope, receive, send)


def _within(receive: Receive, seconds: float) -> Receive:
    deadline, whole = time.monotonic() + seconds, False

    async def limited() -> Message:
        nonlocal whole
        if whole:  # what comes now is that the client leaves
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            said = f"The body did not come within {seconds:g} s."
            raise HTTPException(408, said, {"Connection": "close"}) from None
        whole = not message.get("more_body", False)
        return message

    return limited
