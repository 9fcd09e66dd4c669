"""Keys of requests: what changes nothing is taken, the rest is refused by its name, and other paths say what there is. No model is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from deploy.serve.app import ServeOptions, Service, create_app
from deploy.serve.guard import is_local
from deploy.serve.model import ServedModel
from deploy.serve.protocol.fields import COMPLETION, MESSAGE, PART, REQUEST, STREAM, Unserved
from deploy.serve.protocol.words import explained
from deploy.serve.schemas import ChatRequest, CompletionRequest, Request

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
# The name is looked at after the rest of the body: who hears that there is no such model was understood.
PROMPT = {"model": "none", "prompt": "hi"}
TALK = {"model": "none", "messages": [USER]}
VALUES: dict[type, Any] = {str: "x", dict: {"a": "b"}, bool: True}


@pytest.fixture(scope="module")
def service() -> Service:
    model = SimpleNamespace(context=128, vocabulary=10, ends=frozenset(), search={}, fast=None)
    return Service(cast(ServedModel, model), ServeOptions("m", parallel=1, max_queue=1, api_key="clé"))


@pytest.fixture(scope="module")
def http(service: Service) -> TestClient:
    headers = {"Authorization": "Bearer clé".encode()}
    return TestClient(create_app(service), raise_server_exceptions=False, headers=cast(dict[str, str], headers))


def said(http: TestClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code in (400, 404), answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def neutral(entry: Unserved) -> list[Any]:
    return [*entry.values, *(VALUES[kind] for kind in entry.kind)]


def complaint(kind: type[Request], body: dict[str, Any]) -> tuple[str | None, str] | None:
    try:
        kind.model_validate(body)
    except ValidationError as error:
        return explained(cast(dict[str, Any], error.errors()[0]))
    return None


@pytest.mark.parametrize(
    ("kind", "table", "body"),
    [
        (CompletionRequest, COMPLETION, lambda key, value: PROMPT | {key: value}),
        (ChatRequest, REQUEST, lambda key, value: TALK | {key: value}),
        (ChatRequest, MESSAGE, lambda key, value: TALK | {"messages": [USER | {key: value}]}),
        (ChatRequest, PART, lambda key, value: TALK | {"messages": [USER | {"content": [{"type": "text", "text": "hi", key: value}]}]}),
        (ChatRequest, STREAM, lambda key, value: TALK | {"stream_options": {key: value}}),
    ],
    ids=["completion", "chat", "message", "part", "stream"],
)
def test_a_key_of_the_tables_is_taken_where_it_changes_nothing_and_named_otherwise(
    kind: type[Request], table: dict[str, Unserved], body: Any
) -> None:
    for key, entry in table.items():
        for value in (None, *neutral(entry)):
            assert complaint(kind, body(key, value)) is None, (key, value)
        for value in (["odd", 17], 12345, -1.5):
            found = complaint(kind, body(key, value))
            assert found is not None, (key, value)
            assert str(found[0]).split(".")[-1] == key
            assert key in found[1]


@pytest.mark.parametrize(
    "body",
    [
        # guidellm 0.8
        PROMPT | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        | {"max_tokens": 8, "stop": None, "ignore_eos": True},
        TALK | {"max_completion_tokens": 8, "stop": None, "ignore_eos": True, "messages": [USER | {"content": [{"type": "text", "text": "a"}]}]},
        # benchmarks that hold every answer at one length
        PROMPT | {"max_tokens": 8, "min_tokens": 8, "ignore_eos": True},
        # langchain-openai 1.7: a list of one prompt, and all defaults
        {"model": "none", "prompt": ["hi"], "temperature": 0.7, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1}
        | {"max_tokens": 256, "seed": None, "logprobs": None},
        # benchmarks
        PROMPT | {"temperature": 0.0, "best_of": 1, "max_tokens": 8, "stream": True, "ignore_eos": True},
        PROMPT | {"n": 3, "best_of": 3, "logprobs": 5},
        PROMPT | {"logprobs": False, "add_special_tokens": True},
        TALK | {"logprobs": True, "top_logprobs": 5, "n": 4, "add_special_tokens": False, "logit_bias": {"5": 0}},
        TALK | {"messages": [{"role": "developer", "content": "Be brief."}, USER | {"name": "Ann"}]},
        # an answer sent back as openai's client writes it out
        TALK | {"messages": [USER, {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "function_call": None}, USER]},
    ],
)  # fmt: skip
def test_what_well_known_clients_send_is_understood(http: TestClient, body: dict[str, Any]) -> None:
    error = said(http, COMPLETIONS if "prompt" in body else CHAT, body)
    assert error["code"] == "model_not_found", error["message"]


IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (TALK | {"messages": [USER, USER | {"content": [{"type": "text", "text": "a"}, IMAGE]}]}, "messages.1.content.1.type", "image_url"),
        (
            TALK | {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            "messages.0.tool_calls",
            "tools are not called",
        ),
        (TALK | {"messages": [{"role": "assistant", "tool_calls": "broken"}]}, "messages.0.tool_calls", "tools are not called"),
        (TALK | {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role", "'tool'"),
        (TALK | {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user' or 'assistant'"),
        (TALK | {"messages": [{"role": "user"}]}, "messages.0.content", "is missing"),
        (TALK | {"messages": [USER | {"content": 5}]}, "messages.0.content", "must be a text, or a list of text parts"),
        (TALK | {"messages": [USER | {"content": [{"type": "text"}]}]}, "messages.0.content.0.text", "is missing"),
        (TALK | {"messages": []}, "messages", "at least 1"),
        (TALK | {"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        (TALK | {"top_logprobs": 6, "logprobs": True}, "top_logprobs", "at most 5"),
        (TALK | {"logprobs": 5}, "logprobs", "must be true or false"),
        (TALK | {"n": 5}, "n", "at most 4"),
        (TALK | {"tools": [{"type": "function"}]}, "tools", "tools are not called"),
        (TALK | {"response_format": {"type": "json_object"}}, "response_format", 'send {"type": "text"}'),
        (TALK | {"add_special_tokens": True}, "add_special_tokens", "not supported"),
        (TALK | {"min_tokens": 8, "max_tokens": 7, "ignore_eos": True}, "min_tokens", "not supported"),
        (PROMPT | {"prompt": [1, "a"]}, "prompt.1", "must be a whole number"),
        (PROMPT | {"prompt": [[1, True]]}, "prompt.1", "must be a whole number"),
        (PROMPT | {"prompt": ["a", "b"]}, "prompt", "one prompt per request is answered, and there are 2"),
        (PROMPT | {"prompt": {"a": 1}}, "prompt", "must be a text, or a list of token ids"),
        (PROMPT | {"best_of": 3, "n": 2}, "best_of", "not supported"),
        (PROMPT | {"repetition_penalty": 1.1}, "repetition_penalty", "or send 1"),
        (PROMPT | {"logprobs": 6}, "logprobs", "at most 5"),
        (PROMPT | {"unheard_of": 1}, "unheard_of", "no key that this server knows"),
        ({"prompt": "x"}, "model", "is missing"),
    ],
)
def test_what_is_wrong_is_named(http: TestClient, body: dict[str, Any], param: str, words: str) -> None:
    error = said(http, COMPLETIONS if "prompt" in body else CHAT, body)
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert words in error["message"]
    assert param in error["message"]


def test_more_answers_than_an_empty_queue_holds_are_refused_by_name(http: TestClient) -> None:
    assert said(http, COMPLETIONS, PROMPT | {"model": "m", "n": 3})["param"] == "n"


def test_a_penalty_of_one_and_seeds_reach_the_runtime() -> None:
    asked = CompletionRequest(model="m", prompt="x", seed=7, n=3, repetition_penalty=1)
    options = [asked.sampling(choice).options({}, 20) for choice in range(3)]
    assert [told["random_seed"] for told in options] == [7, 8, 9]
    assert {told["repetition_penalty"] for told in options} == {1.0}
    assert "repetition_penalty" not in CompletionRequest(model="m", prompt="x").sampling(0).options({}, 20)
    assert CompletionRequest(model="m", prompt="x", max_completion_tokens=5).limit == 5


def test_templates_hear_of_names_and_of_the_developer_under_the_name_that_they_know() -> None:
    asked = ChatRequest.model_validate(TALK | {"messages": [{"role": "developer", "content": "Be brief."}, USER | {"name": "Ann"}]})
    assert [message.plain("system") for message in asked.messages] == [{"role": "system", "content": "Be brief."}, USER | {"name": "Ann"}]
    assert asked.messages[0].plain("developer")["role"] == "developer"


@pytest.mark.parametrize(
    "path", ["/completions", "/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions/", "/", "//v1/completions"]
)
def test_other_paths_say_what_there_is(http: TestClient, path: str) -> None:
    for answer in (http.post(path, json=PROMPT, follow_redirects=False), http.get(path, follow_redirects=False)):
        if path == "/v1/models/" and answer.request.method == "POST":
            continue
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "not_found")
        assert "POST /v1/chat/completions" in error["message"]
        assert "GET /v1/models/NAME" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("GET", CHAT, "POST"), ("DELETE", "/v1/models", "GET, HEAD"), ("PUT", "/health/live", "GET, HEAD")]
)
def test_another_method_is_told_which_ones_there_are(http: TestClient, method: str, path: str, allow: str) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.headers["allow"], answer.json()["error"]["code"]) == (405, allow, "method_not_allowed")


@pytest.mark.parametrize("path", ["/health/live", "/v1/models", "/v1/models/m", "/metrics", "/openapi.json"])
def test_what_is_read_can_be_asked_for_by_its_head(http: TestClient, path: str) -> None:
    assert (http.head(path).status_code, http.head(path).content) == (200, b"")


def test_a_key_is_taken_in_both_encodings_that_clients_use(service: Service) -> None:
    asked = TestClient(create_app(service))
    codes = [
        asked.get("/v1/models", headers={"Authorization": b"bearer  " + key}).status_code
        for key in ("clé".encode(), "clé".encode("latin-1"))
    ]
    assert codes == [200, 200]
    for wrong in (b"Bearer cl", b"Bearer cle", "clé".encode(), b"Basic " + "clé".encode(), b""):
        assert asked.get("/v1/models", headers={"Authorization": wrong}).status_code == 401


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:1", "127.0.0.2", "[::1]", "[::1]:8000", "a.localhost"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1", "[::2]", "[", "0.0.0.0"],
)
def test_names_that_a_stranger_can_give_out(host: str) -> None:
    assert not is_local(host)


def test_another_host_is_refused_where_only_this_machine_listens(service: Service) -> None:
    key = {"Authorization": "Bearer clé".encode()}
    for local, status in ((True, 421), (False, 200)):
        answer = TestClient(create_app(service, local), base_url="http://evil.example").get("/v1/models", headers=cast(dict[str, str], key))
        assert answer.status_code == status
        assert local is False or answer.json()["error"]["code"] == "wrong_host"
    assert TestClient(create_app(service, True), base_url="http://localhost:1").get("/health/live").status_code == 200
