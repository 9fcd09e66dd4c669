"""Calls Triton with NVIDIA's tritonclient. Runs in the server's own environment, since that client needs another protobuf.

Reads one JSON document from stdin, ``{"http": address, "grpc": address, "do": [[what, arguments], …]}``, and prints the
list of answers; an answer that the server refused is ``{"error": message, "status": code}``.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TYPES = {"text_input": object, "stop": object, "max_tokens": np.int32, "temperature": np.float32, "seed": np.int64}
OUTPUTS = ("text_output", "token_ids", "finish_reason")
CLIENTS: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}
SECONDS = 300


class Caller:
    """What can be asked of a server."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._addresses = addresses

    def text(self, over: str, model: str, given: dict[str, Any]) -> dict[str, Any]:
        """One request; values of ``given`` are rows: numbers, texts, or lists of texts."""
        return _answer(self._client(over).infer(model, _inputs(CLIENTS[over], given)))

    def parallel(self, over: str, model: str, given: list[dict[str, Any]]) -> dict[str, Any]:
        """All requests at once, each from a thread and a connection of its own."""
        waits: list[float] = []

        def one(entry: dict[str, Any]) -> dict[str, Any]:
            client = self._client(over)
            started = time.monotonic()
            answer = _refusal_or(lambda: _answer(client.infer(model, _inputs(CLIENTS[over], entry))))
            waits.append(time.monotonic() - started)
            return answer

        with ThreadPoolExecutor(len(given)) as pool:
            started = time.monotonic()
            answers = list(pool.map(one, given))
        return {"answers": answers, "seconds": time.monotonic() - started, "waits": sorted(waits)}

    def stream(self, model: str, given: dict[str, Any]) -> list[dict[str, Any]]:
        """Every response of a streamed request."""
        client, arrived = self._client("grpc"), queue.Queue[Any]()
        client.start_stream(lambda result, error: arrived.put(error or result))
        try:
            client.async_stream_infer(model, _inputs(tritonclient.grpc, given), enable_empty_final_response=True)
            answers = []
            while True:
                result = arrived.get(timeout=SECONDS)
                if isinstance(result, InferenceServerException):
                    raise result
                answers.append(_answer(result))
                if result.get_response().parameters["triton_final_response"].bool_param:
                    return answers
        finally:
            client.stop_stream()

    def left(self, model: str, given: dict[str, Any], after: float) -> str:
        """A request that its client gives up after some seconds; what the client then hears."""
        client, arrived = self._client("grpc"), queue.Queue[Any]()
        call = client.async_infer(model, _inputs(tritonclient.grpc, given), lambda result, error: arrived.put(error or result))
        time.sleep(after)
        call.cancel()
        return str(arrived.get(timeout=SECONDS))

    def states(self) -> dict[str, list[str]]:
        """Model to [state, reason]."""
        return {row["name"]: [row.get("state", ""), row.get("reason", "")] for row in self._client("http").get_model_repository_index()}

    def metadata(self) -> dict[str, Any]:
        return dict(self._client("http").get_server_metadata())

    def parses(self, text: str) -> dict[str, Any]:
        """A config.pbtxt read with Triton's own message definition."""
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        return {"name": config.name, "backend": config.backend, "inputs": [entry.name for entry in config.input]}

    def _client(self, over: str) -> Any:
        timeouts = {"network_timeout": SECONDS, "connection_timeout": SECONDS} if over == "http" else {}
        return CLIENTS[over].InferenceServerClient(self._addresses[over], **timeouts)


def _inputs(library: Any, given: dict[str, Any]) -> list[Any]:
    inputs = []
    for name, rows in given.items():
        as_type = TYPES[name]
        values = [row if isinstance(row, list) else [row] for row in rows]
        if as_type is object:
            values = [[text.encode("utf-8", "surrogateescape") for text in row] for row in values]  # lone surrogates: raw bytes
        array = np.asarray(values, as_type)
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _answer(result: Any) -> dict[str, Any]:
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    if any(array is None for array in found.values()):
        return {}
    return {
        "text": [row[0].decode("utf-8") for row in found["text_output"]],
        "tokens": [[token for token in row if token >= 0] for row in found["token_ids"].tolist()],
        "finish": [row[0].decode() for row in found["finish_reason"]],
    }


def _refusal_or(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}
    except text_format.ParseError as error:
        return {"error": str(error), "status": None}


def main() -> None:
    """Answers stdin on stdout."""
    asked = json.load(sys.stdin)
    caller = Caller({over: asked[over] for over in CLIENTS})
    answers = [_refusal_or(lambda what=what, given=given: getattr(caller, what)(*given)) for what, given in asked["do"]]
    json.dump(answers, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # a stream that the server ended with an error leaves a thread that the interpreter would wait for


if __name__ == "__main__":
    main()
