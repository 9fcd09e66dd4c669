"""Requests as a stranger, a broken client or a bad network may send them: bytes on a connection, and how it is left. The same seed makes the same."""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from tests.fuzz.mutate import document, value

PATIENCE = 60  # seconds for an answer that must come
NOT_HTTP = b"Invalid HTTP request received."  # h11's own answer, before any application is asked
ANSWER = "POST /v1/completions", "POST /v1/chat/completions"
READ = "GET /v1/models", "GET /v1/models/tiny-onnx", "GET /health/live", "GET /health/ready", "GET /metrics", "GET /openapi.json"
METHODS = ("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "FOO", "post")
PATHS = (
    "/", "/v1", "/v1/", "/v1/models/", "/v1/models/%00", "/v1/models/a%2Fb", "/v1/models/%ff%fe", "/completions", "/v1/embeddings",
    "//v1/completions", "/v1/../v1/completions", "/v1/completions/", "/v1/completions?x=%00&y", "/%2e%2e/etc/passwd", "/v1/" + "a" * 5000,
    "http://evil.example/v1/models", "*", "/v1/chat/completions#x", "/metrics;x", "/V1/MODELS",
)  # fmt: skip
HEADERS = (
    "Content-Type: text/plain", "Content-Type: application/x-www-form-urlencoded", "Content-Type: application/json; charset=utf-16",
    "Content-Type: multipart/form-data; boundary=x", "Content-Type: ", "Content-Encoding: gzip", "Authorization: Bearer ",
    "Authorization: Bearer \xff\xfe", "Authorization: Basic eDp5", "Accept: text/html", "Accept: application/xml", "Expect: 100-continue",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Origin: http://evil.example", "X-Forwarded-For: 192.0.2.1", "Range: bytes=0-1", "If-Match: *", "X-Long: " + "x" * 20_000,
    "Cookie: " + "a=b; " * 500, "X-\xe9: \xe9",
)  # fmt: skip
BROKEN_HEADS = (
    b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"POST /v1/completions HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n", b"\x00" * 300,
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999999999999\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\n{\r\n0\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
)  # fmt: skip
LONE_BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"[" * 3000,
    b"\xff\xfe{",
    b"{}" * 50,
    b'{"a":' * 500,
    b"9" * 5000,
    b"\x1f\x8b\x08",
    b"NaN",
)


@dataclass(frozen=True)
class OddRequest:
    """What is sent, and what the client does then.

    Attributes:
        sent: pieces, each in a write of its own.
        methods: of the requests on this connection whose answers are read; none where the server may wait for more.
        leaves: ``reads`` every answer, or ``closes``, ``resets`` or ``half`` (closes for writing only) before one has come, or
            ``tastes`` its first bytes and resets.
    """

    sent: tuple[bytes, ...]
    methods: tuple[str, ...]
    leaves: str

    def play(self, url: str) -> str | None:
        """Sends it; a complaint where the answer is not what it may be."""
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), PATIENCE) as connection:
            try:
                for piece in self.sent:
                    connection.sendall(piece)
                if self.leaves == "reads":
                    answers = _Answers(socket.SocketIO(connection, "r"))
                    return next(filter(None, (_judged(answers, method) for method in self.methods)), None)
                self._leave(connection)
            except (ConnectionError, BrokenPipeError):  # the server has refused and closed while this side still wrote
                return None
            except TimeoutError:
                return f"no answer within {PATIENCE} s"
        return None

    def _leave(self, connection: socket.socket) -> None:
        if self.leaves == "half":
            connection.shutdown(socket.SHUT_WR)
            return
        if self.leaves == "tastes":
            connection.settimeout(2)
            with suppress(TimeoutError):
                connection.recv(20)
        if self.leaves in ("resets", "tastes"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def odd_request(seed: int) -> OddRequest:
    """The request of a seed."""
    draw = random.Random(f"request {seed}")
    makers: tuple[tuple[int, Callable[[random.Random], OddRequest]], ...] = (
        (36, _odd_body), (10, _odd_path), (12, _odd_headers), (8, _not_http), (12, _cut_off), (22, _left_alone),
    )  # fmt: skip
    return draw.choices([maker for _, maker in makers], [weight for weight, _ in makers])[0](draw)


def _odd_body(draw: random.Random) -> OddRequest:
    start, body = _asked(draw)
    if draw.random() < 0.15:
        return _whole(start, draw.choice(LONE_BODIES))
    for _ in range(draw.randint(1, 2)):
        body = document(draw, body)
    if isinstance(body, dict) and draw.random() < 0.3:
        body[draw.choice(("tools", "n", "logprobs", "stop", "stream", "seed", "top_logprobs", "echo", "metadata", "min_p", "odd"))] = value(
            draw
        )
    if isinstance(body, dict) and "messages" in body and draw.random() < 0.95:
        body.setdefault("max_tokens", 4)  # an answer of 4000 tokens is no odder, and takes longer
    return _whole(start, _written(body))


def _odd_path(draw: random.Random) -> OddRequest:
    method = draw.choice(METHODS)
    path = draw.choice((*PATHS, *(one.split()[1] for one in (*ANSWER, *READ))))
    return _whole(f"{method} {path}", _written(_asked(draw)[1]) if draw.random() < 0.5 else b"")


def _odd_headers(draw: random.Random) -> OddRequest:
    start, body = _asked(draw) if draw.random() < 0.6 else (draw.choice(READ), None)
    given = draw.sample(HEADERS, draw.randint(1, 3))
    return _whole(
        start, b"" if body is None else _written(body), given, draw.choice(("localhost", "127.0.0.1", "evil.example", "", "[::1]"))
    )


def _not_http(draw: random.Random) -> OddRequest:
    head = draw.choice(BROKEN_HEADS)
    if draw.random() < 0.3:
        raw = bytearray(_whole(*_asked_bytes(draw)).sent[0])
        for _ in range(draw.randint(1, 5)):
            raw[draw.randrange(min(len(raw), 120))] = draw.randrange(256)
        head = bytes(raw)
    return OddRequest((head,), (), draw.choice(("closes", "resets", "half")))


def _cut_off(draw: random.Random) -> OddRequest:
    """Part of a request, in pieces, and then nothing."""
    whole = _whole(*_asked_bytes(draw)).sent[0]
    cut = whole[: draw.randrange(1, len(whole))]
    middle = draw.randrange(len(cut))
    return OddRequest((cut[:middle], cut[middle:]), (), draw.choice(("closes", "resets", "half")))


def _left_alone(draw: random.Random) -> OddRequest:
    """One or several whole requests, whose answers nobody waits for; or two at once, both read."""
    starts = [_whole(*_asked_bytes(draw, more=draw.choice((200, 3)))) for _ in range(draw.randint(1, 3))]
    sent = tuple(one.sent[0] for one in starts)
    leaves = draw.choice(("closes", "resets", "half", "tastes", "tastes", "reads"))
    return OddRequest(sent, ("POST",) * len(sent) if leaves == "reads" else (), leaves)


def _asked(draw: random.Random, more: int = 4) -> tuple[str, Any]:
    """The beginning and the body of a request that is in order."""
    common = {"model": "tiny-onnx", "max_tokens": draw.randint(1, more), "stream": draw.random() < 0.4, "ignore_eos": draw.random() < 0.5}
    common |= draw.choice(({}, {"temperature": 0}, {"seed": 3, "top_p": 0.5}, {"n": 2}, {"stop": ["a", "</s>"]}, {"user": None}))
    if draw.random() < 0.5:
        return ANSWER[0], common | {"prompt": draw.choice(("Hello", "a" * 300, [5, 6, 7], "é🎉"))} | draw.choice(({}, {"logprobs": 2}))
    parts = [{"type": "text", "text": "Hi"}]
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": draw.choice(("Hi", parts))}]
    return ANSWER[1], common | {"messages": talk} | draw.choice(({}, {"logprobs": True, "top_logprobs": 1}))


def _asked_bytes(draw: random.Random, more: int = 4) -> tuple[str, bytes]:
    start, body = _asked(draw, more)
    return start, _written(body)


def _written(body: Any) -> bytes:
    return json.dumps(body).encode(errors="surrogatepass")


def _whole(start: str, body: bytes, headers: list[str] | None = None, host: str = "localhost") -> OddRequest:
    lines = [f"{start} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *(headers or ())]
    if not any(line.startswith("Content-Type") for line in lines):
        lines.append("Content-Type: application/json")
    return OddRequest(("\r\n".join([*lines, "", ""]).encode("latin-1") + body,), (start.split()[0],), "reads")


class _Answers(io.BufferedReader):
    """What comes on a connection; the end of one answer does not close it, since another may follow."""

    def makefile(self, *_: Any) -> _Answers:
        """As ``http.client`` asks a socket for it."""
        return self

    def close(self) -> None:
        return None


def _judged(connection: _Answers, method: str) -> str | None:
    """A complaint about the next answer on a connection."""
    answer = http.client.HTTPResponse(cast(Any, connection), method=method)
    try:
        answer.begin()
        body = answer.read()
    except http.client.HTTPException as error:
        return f"no HTTP: {error!r}"
    shown = f"{answer.status} {body[:300]!r}"
    if answer.status >= 500 and answer.status != 503:
        return shown
    if answer.status < 400:
        streamed = (answer.headers["content-type"] or "").startswith("text/event-stream")
        return shown if streamed and not body.endswith(b"data: [DONE]\n\n") else None
    if method == "HEAD" or (answer.status == 400 and body == NOT_HTTP):
        return None
    try:
        told = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"not in OpenAI's form: {shown}"
    return None if set(told) == {"message", "type", "param", "code"} and told["message"] else f"not in OpenAI's form: {shown}"
