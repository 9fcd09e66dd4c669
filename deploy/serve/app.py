"""The routes: OpenAI's completions and chat completions, models, health, metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from deploy.pieces import NeverFound, special_stops
from deploy.serve.answers import ChatAnswer, CompletionAnswer, as_json
from deploy.serve.bounds.bodies import BodyLimit
from deploy.serve.bounds.connections import Patience
from deploy.serve.engine import Engine
from deploy.serve.errors import ApiError, add_handlers
from deploy.serve.guard import Guard
from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel, largest_text
from deploy.serve.protocol.logprobs import TokenTexts
from deploy.serve.schemas import ChatRequest, CompletionRequest, Message
from deploy.serve.schemas import Request as Asked
from deploy.serve.streams import AnswersWanted, EventStream, Listener, unless_gone

Handler = Callable[..., Awaitable[Response]]
PREPARING = 4  # prompts that are made into tokens at once, each in a thread
CLIENT_GONE = 499  # nobody reads it; the metrics do


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Attributes:
        name: what clients call the model.
        parallel: requests that take turns.
        max_queue: requests that may wait besides.
        api_key: that clients must send; None: none.
        grace: seconds for what runs and waits, once the server is told to end.
        patience: with clients.
        step_timeout: seconds that one step of the computing process may take.
        context: most tokens of prompt and answer together; None: what the model has.
    """

    name: str
    parallel: int = 4
    max_queue: int = 128
    api_key: str | None = None
    grace: float = 30.0
    patience: Patience = Patience()
    step_timeout: float = 120.0
    context: int | None = None


class Service:
    """What the routes share."""

    def __init__(self, model: ServedModel, options: ServeOptions) -> None:
        self.model, self.options, self.metrics = model, options, Metrics()
        self.engine = Engine(model, options.parallel, options.max_queue, self.metrics, options.step_timeout)
        self.started = int(time.time())
        self._preparing = CapacityLimiter(PREPARING)

    @property
    def largest_body(self) -> int:
        """Bytes."""
        return largest_text(self.model.context)

    def kill(self) -> None:
        """Ends all processes without waiting for anything."""
        self.engine.kill()
        self.model.templates.kill()

    async def answer(
        self, request: Request, asked: Asked, encode: Callable[[], list[int]], kind: type[CompletionAnswer | ChatAnswer]
    ) -> Response:
        """Runs one request."""
        arrived = time.monotonic()
        self.check_name(asked.model)
        self._check_answers(asked.n)
        stop_tokens = self._stop_tokens(asked.stop)
        try:
            prompt = await to_thread.run_sync(encode, limiter=self._preparing)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_prompt") from error
        length = self._length(len(prompt), asked.limit)
        choices = [asked.sampling(choice).options(self.model.search, length) for choice in range(asked.n)]
        listener = Listener(self.engine, AnswersWanted(prompt, choices, tuple(asked.stop), stop_tokens, asked.alternatives, arrived))
        answer = kind(self.options.name, None if asked.alternatives is None else self._texts)
        if asked.stream:
            return EventStream(listener, answer, asked.stream_options)
        result = await unless_gone(request, listener)
        if result is None:
            return Response(status_code=CLIENT_GONE)
        return Response(as_json(answer.whole(result)), media_type="application/json")

    @cached_property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self.model.fast)

    def _stop_tokens(self, stops: Sequence[str]) -> frozenset[int]:
        try:
            return special_stops(stops, self.model.fast) if stops else frozenset()
        except NeverFound as error:
            param = f"stop.{error.place}"
            raise ApiError(400, f"{param}: {error}", "invalid_value", param) from error

    def _check_answers(self, wanted: int) -> None:
        """Refuses what would be refused by a queue that is empty too."""
        most = self.options.parallel + self.options.max_queue
        if wanted > most:
            raise ApiError(400, f"n: {wanted} answers are asked for, and this server takes {most} at once.", "invalid_value", "n")

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

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation.

        Raises:
            ValueError: the model's template refuses it.
        """
        # Few templates know OpenAI's newer name of the role; the others would write it out, or refuse it.
        knows = "developer" in str(self.model.tokenizer.chat_template)
        return self.model.chat([message.plain("developer" if knows else "system") for message in messages])

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


def create_app(service: Service, local: bool = False) -> Guard:
    """The application; at its end the engine, which was started before, finishes what it has.

    Args:
        service: what is served.
        local: it listens where only this machine can reach it.
    """
    options = service.options

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.engine.stop)

    # The pages for browsers would load scripts from elsewhere; the description itself stays.
    app = FastAPI(
        title="Trimline", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False, max_body_size=service.largest_body
    )
    add_handlers(app, service.metrics)
    _add_generation(app, service)
    _add_status(app, service)
    return Guard(BodyLimit(app, options.patience.read), options.api_key, service.largest_body, service.metrics, local)


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, asked: CompletionRequest) -> Response:
        return await service.answer(request, asked, lambda: service.ids(asked.prompt), CompletionAnswer)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request, asked: ChatRequest) -> Response:
        return await service.answer(request, asked, lambda: service.conversation(asked.messages), ChatAnswer)


def _add_status(app: FastAPI, service: Service) -> None:
    card = Model(id=service.options.name, created=service.started, object="model", owned_by="trimline").model_dump(exclude_none=True)

    @_read(app, "/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @_read(app, "/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if not name:  # some clients end every path by a slash
            return await models()
        service.check_name(name)
        return JSONResponse(card)

    @_read(app, "/health/live")
    async def live() -> Response:
        return JSONResponse({"status": "ok"})

    @_read(app, "/health/ready")
    async def ready() -> Response:
        if not service.engine.alive:
            raise ApiError(503, "The engine does not run.", "not_ready")
        return JSONResponse({"status": "ok"})

    @_read(app, "/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _read(app: FastAPI, path: str) -> Callable[[Handler], Handler]:
    """A path to read from, or to ask whether it is there."""

    def add(handler: Handler) -> Handler:
        app.head(path, response_model=None, include_in_schema=False)(handler)
        return app.get(path, response_model=None)(handler)

    return add
