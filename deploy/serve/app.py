"""The routes: OpenAI's completions and chat completions, models, health, metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from deploy.serve.answers import Answer, ChatAnswer, CompletionAnswer, as_json
from deploy.serve.engine import Engine
from deploy.serve.errors import ApiError, add_handlers
from deploy.serve.guard import Guard
from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from deploy.serve.schemas import ChatRequest, CompletionRequest
from deploy.serve.schemas import Request as Asked
from deploy.serve.streams import EventStream, Listener, unless_gone

LEAST_BODY, BYTES_PER_TOKEN = 2**18, 16
CLIENT_GONE = 499  # nobody reads it; the metrics do


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        name: what clients call the model.
        parallel: requests that take turns.
        max_queue: requests that may wait besides.
        api_key: that clients must send; None: none.
    """

    name: str
    parallel: int = 4
    max_queue: int = 128
    api_key: str | None = None


class Service:
    """What the routes share."""

    def __init__(self, model: ServedModel, options: ServeOptions) -> None:
        self.model, self.options, self.metrics = model, options, Metrics()
        self.engine = Engine(model, options.parallel, options.max_queue, self.metrics)
        self.started = int(time.time())

    @property
    def largest_body(self) -> int:
        """Bytes; far more than fills the context."""
        return max(LEAST_BODY, BYTES_PER_TOKEN * self.model.context)

    async def answer(self, request: Request, asked: Asked, encode: Callable[[], list[int]], answer: Answer, arrived: float) -> Response:
        """Runs one request."""
        self.check_name(asked.model)
        try:
            prompt = await run_in_threadpool(encode)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_prompt") from error
        length = self._length(len(prompt), asked.limit)
        options = asked.sampling().options(self.model.search, self.model.vocabulary, length)
        listener = Listener(self.engine, prompt, options, tuple(asked.stop), arrived)
        if asked.stream:
            return EventStream(listener, answer, asked.stream_options.include_usage)
        result = await unless_gone(request, listener)
        if result is None:
            return Response(status_code=CLIENT_GONE)
        return Response(as_json(answer.whole(*result)), media_type="application/json")

    def ids(self, prompt: str | list[int]) -> list[int]:
        """The tokens of a prompt.

        Raises:
            ValueError: it is empty, or names tokens that are not there.
        """
        if not prompt:
            raise ValueError("The prompt is empty.")
        if isinstance(prompt, str):
            return self.model.encode(prompt)
        if wrong := next((token for token in prompt if not 0 <= token < self.model.vocabulary), None):
            raise ValueError(f"{wrong} is not a token of this model, which has {self.model.vocabulary}.")
        return prompt

    def check_name(self, name: str) -> None:
        """Refuses every name but the model's."""
        if name != self.options.name:
            raise ApiError(404, f"There is no model {name[:100]!r} here, only {self.options.name!r}.", "model_not_found", "model")

    def _length(self, prompt: int, limit: int | None) -> int:
        """Tokens of prompt and answer together."""
        if prompt == 0:
            raise ApiError(400, "The prompt has no tokens.", "invalid_prompt", "prompt")
        context = self.model.context
        wanted = prompt + (1 if limit is None else limit)
        if wanted > context:
            asked = f"{prompt} tokens in the prompt" + ("" if limit is None else f" and {limit} to generate")
            raise ApiError(400, f"The model's context is {context} tokens; there are {asked}.", "context_length_exceeded", "max_tokens")
        return context if limit is None else wanted


def create_app(service: Service) -> Guard:
    """The application; at its end the engine, which was started before, finishes what it has."""
    options = service.options

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.engine.stop)

    # The pages for browsers would load scripts from elsewhere; the description itself stays.
    app = FastAPI(title="Trimline", lifespan=lifespan, docs_url=None, redoc_url=None, max_body_size=service.largest_body)
    add_handlers(app, service.metrics)
    _add_generation(app, service)
    _add_status(app, service)
    return Guard(app, options.api_key, service.largest_body, service.metrics)


def _add_generation(app: FastAPI, service: Service) -> None:
    name = service.options.name

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        arrived = time.monotonic()
        return await service.answer(request, asked, lambda: service.ids(asked.prompt), CompletionAnswer(name), arrived)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request, asked: ChatRequest) -> Response:
        arrived = time.monotonic()
        messages = [message.plain() for message in asked.messages]
        return await service.answer(request, asked, lambda: service.model.chat(messages), ChatAnswer(name), arrived)


def _add_status(app: FastAPI, service: Service) -> None:
    card = Model(id=service.options.name, created=service.started, object="model", owned_by="trimline").model_dump(exclude_none=True)

    @app.get("/v1/models", response_model=None)
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one_model(name: str) -> Response:
        service.check_name(name)
        return JSONResponse(card)

    @app.get("/health/live", response_model=None)
    async def live() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/health/ready", response_model=None)
    async def ready() -> Response:
        if not service.engine.alive:
            raise ApiError(503, "The engine does not run.", "not_ready")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
