"""Errors in the form that OpenAI's clients read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from openai.types.shared import ErrorObject
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route

from deploy.serve.metrics import Metrics
from deploy.serve.protocol.words import explained

INVALID, SERVER = "invalid_request_error", "server_error"
TOO_LARGE = "request_too_large"


class ApiError(Exception):
    """An answer with an error.

    Args:
        status: of HTTP.
        message: one sentence for a person.
        code: one word for a program.
        param: the key of the request that is wrong.
        headers: of HTTP.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    def body(self) -> dict[str, object]:
        """The JSON document."""
        kind = INVALID if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else SERVER
        # A key of the request may hold half a surrogate pair, which no answer can.
        param = None if self.param is None else self.param.encode(errors="replace").decode()
        message = self.message.encode(errors="replace").decode()
        return {"error": ErrorObject(message=message, type=kind, param=param, code=self.code).model_dump(exclude={"misalignment"})}

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body(), self.status, dict(self.headers or {}))


def add_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Turns whatever goes wrong in a route into OpenAI's form, and counts it."""

    def answer(error: ApiError) -> JSONResponse:
        metrics.errors.labels(error.code or str(error.status)).inc()
        return error.response()

    @app.exception_handler(ApiError)
    async def _ours(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_explain(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):  # of the router: routes raise their own
            return answer(nowhere(app.routes, request))
        phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        code = TOO_LARGE if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else phrase
        return answer(ApiError(error.status_code, str(error.detail), code, headers=error.headers))

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        return answer(ApiError(500, f"Something went wrong inside ({type(error).__name__}).", "internal_error"))


def nowhere(routes: Sequence[BaseRoute], request: Request) -> ApiError:
    """What is said of a path, or of a method of a path, that this server does not have: a list of what it has."""
    known = [route for route in routes if isinstance(route, Route)]
    here = {method for route in known if route.matches(request.scope)[0] != Match.NONE for method in route.methods or ()}
    asked = f"{request.method[:20]} {request.url.path[:100]!r}"
    if here:
        allow = ", ".join(sorted(here))
        return ApiError(405, f"{asked} is not answered, only {allow}.", "method_not_allowed", headers={"Allow": allow})
    has = ", ".join(f"{method} {_shown(route.path)}" for route in known for method in sorted(route.methods or ()) if method != "HEAD")
    return ApiError(404, f"There is no {asked} here; a base URL ends in /v1. This server has {has}.", "not_found")


def _shown(path: str) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", lambda found: found[1].upper(), path)


def _explain(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong; what was sent is not repeated, since it may be long or no valid text."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", "invalid_json")
    if first["loc"] == ("body",) and first["type"] == "model_attributes_type":
        return ApiError(400, "The body must be a JSON object, sent as Content-Type: application/json.", "invalid_json")
    param, message = explained(first)
    return ApiError(400, message, "invalid_value", param)
