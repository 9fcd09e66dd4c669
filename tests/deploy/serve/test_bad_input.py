"""Whatever is sent, the answer is an error in OpenAI's form, and the server answers the next request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.deploy.serve.conftest import CONTEXT, Served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "x"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def http(served: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.url, timeout=60) as client:
        yield client
        after = client.post(COMPLETIONS, json={"model": served.name, "prompt": "x", "max_tokens": 2})
        assert after.status_code == 200, "the server does not answer any more"


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text[:500]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["x" * 1001]}, "stop.0"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_value_that_is_wrong_is_named(http: httpx2.Client, served: Served, change: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": served.name, "prompt": "x"} | change)
    error = error_of(http.post(COMPLETIONS, content=body, headers=JSON), 400)
    assert (error["param"], error["type"], error["code"]) == (param, "invalid_request_error", "invalid_value")


@pytest.mark.parametrize(
    "messages",
    [None, [], "x", [{}], [{"role": "robot", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}], [[]]]
    + [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], [{"role": "tool", "content": "x"}]],
)
def test_conversations_that_are_none(http: httpx2.Client, served: Served, messages: Any) -> None:
    error = error_of(http.post(CHAT, json={"model": served.name, "messages": messages}), 400)
    assert str(error["param"]).startswith("messages")


def test_what_the_template_refuses_is_refused(http: httpx2.Client, served: Served) -> None:
    error = error_of(http.post(CHAT, json={"model": served.name, "messages": [USER | {"content": "refuse"}]}), 400)
    assert "not this" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"model": "tiny-onnx", "prompt": "\xff\xfe"}', b"[" * 100_000, b"[]", b'"x"', b"9" * 100_000]
    + [b'{"model": "tiny-onnx", "prompt": "\\ud800"}', b'{"model": "tiny-onnx", "prompt": "x", "stop": ["\\udfff"]}']
    + [b'{"model": "tiny-onnx", "prompt": "x", "\\ud800": 1}', b'{"model": "\\ud800", "prompt": "x"}', b"\x00" * 100],
    ids=lambda body: body[:40].decode("ascii", "replace"),
)
def test_bodies_that_are_no_request(http: httpx2.Client, body: bytes) -> None:
    error_of(http.post(COMPLETIONS, content=body, headers=JSON), 400)


def test_a_body_without_its_type_is_refused(http: httpx2.Client) -> None:
    assert "application/json" in error_of(http.post(COMPLETIONS, content=b'{"model": "x"}'), 400)["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]]])
def test_an_empty_prompt_is_refused(http: httpx2.Client, served: Served, prompt: Any) -> None:
    assert error_of(http.post(COMPLETIONS, json={"model": served.name, "prompt": prompt}), 400)["message"] == "The prompt is empty."


@pytest.mark.parametrize("token", [104, -1, 2**40])
def test_a_token_that_is_not_there_is_refused(http: httpx2.Client, served: Served, token: int) -> None:
    assert "is not a token" in error_of(http.post(COMPLETIONS, json={"model": served.name, "prompt": [5, token]}), 400)["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_prompt_beyond_the_context_is_refused(http: httpx2.Client, served: Served, path: str) -> None:
    text = "a" * CONTEXT
    asked = {"prompt": text} if path == COMPLETIONS else {"messages": [USER | {"content": text}]}
    error = error_of(http.post(path, json={"model": served.name} | asked), 400)
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stated", [True, False])
def test_ten_megabytes_are_refused_before_they_are_read(http: httpx2.Client, served: Served, stated: bool) -> None:
    body = json.dumps({"model": served.name, "prompt": "word " * 2_000_000}).encode()
    parts = (body[at : at + 65536] for at in range(0, len(body), 65536))
    began = time.monotonic()
    try:
        answer = http.post(COMPLETIONS, content=body if stated else parts, headers=JSON)
    except httpx2.TransportError:  # the server has answered and closed while this side still wrote
        return
    finally:
        assert time.monotonic() - began < 5
    assert error_of(answer, 413)["code"] == "request_too_large"


def test_other_paths_and_methods(http: httpx2.Client) -> None:
    assert error_of(http.get("/v1/embeddings"), 404)["code"] == "not_found"
    assert error_of(http.get(COMPLETIONS), 405)["code"] == "method_not_allowed"
    assert error_of(http.get("/../../etc/passwd"), 404)


def test_another_model_is_not_found(http: httpx2.Client) -> None:
    error = error_of(http.post(COMPLETIONS, json={"model": "gpt", "prompt": "x"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
