"""Triton's Python backend: a client sends text and gets text.

Inputs and outputs are those of config.pbtxt beside this file. Requests that Triton hands over together are generated
together. A request that is wrong gets an error of its own, and the others are answered.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The package's manifest knows every file in it: nothing may be left here, such as what the stub compiled before this line.
sys.dont_write_bytecode = True
shutil.rmtree(HERE / "__pycache__", ignore_errors=True)
sys.path.insert(0, str(HERE))
# The backend's stub ignores PYTHONPATH; where its own Python lacks the packages, this says where they lie.
if os.environ.get("TRIMLINE_SITE_PACKAGES"):
    sys.path.insert(0, os.environ["TRIMLINE_SITE_PACKAGES"])

import json  # noqa: E402

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from decoder import Decoder, generate  # noqa: E402
from replies import Reader, Reply  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402


class TritonPythonModel:
    """One instance of the served model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph and the tokenizer; an error here keeps the model from being ready."""
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = (HERE.parent / given["onnx"]).resolve()
        device = "cuda" if args["model_instance_kind"] == "GPU" else "cpu"
        self.decoder = Decoder(folder, int(given["threads"]), device, int(args["model_instance_device_id"] or 0))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.reader = Reader(self.tokenizer, self.decoder.context)
        self.streams = pb_utils.using_decoupled_model_transaction_policy(config)

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers all requests: as a list, or through their senders where the model streams."""
        read = [self._read(request) for request in requests]
        if self.streams:
            self._stream(requests, read)
            return None
        wanted = [rows if isinstance(rows, list) else [] for rows in read]
        failed = None
        try:
            for _ in generate(self.decoder, [reply for rows in wanted for reply in rows]):
                for request, rows in zip(requests, wanted, strict=True):
                    if rows and request.is_cancelled():
                        _cancel(rows)
        except Exception as error:  # whatever it is, the server stays up and says so
            failed = _internal(error)
        return [_response(rows, failed) for rows in read]

    def _read(self, request: Any) -> list[Reply] | Any:
        """The replies to begin, one per row of the request, or the error that it gets."""
        try:
            texts = _column(request, "text_input")
            if texts is None:
                raise ValueError("text_input is missing.")
            if self.streams and len(texts) > 1:
                raise ValueError("A stream takes one text per request.")
            wishes = [self._wish(request, row, text) for row, text in enumerate(texts)]
        except ValueError as error:
            return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        return [Reply(wish, self.tokenizer, self.decoder.ends) for wish in wishes]

    def _wish(self, request: Any, row: int, text: bytes) -> Any:
        given = {name: _column(request, name) for name in ("max_tokens", "temperature", "seed")}
        cell = {name: values[row].item() for name, values in given.items() if values is not None}
        stop = pb_utils.get_input_tensor_by_name(request, "stop")
        stops = [] if stop is None else [bytes(value) for value in stop.as_numpy()[row].ravel()]
        return self.reader.wish(bytes(text), stop=stops, **cell)

    def _stream(self, requests: Sequence[Any], read: Sequence[Any]) -> None:
        senders = [request.get_response_sender() for request in requests]
        for sender, rows in zip(senders, read, strict=True):
            if not isinstance(rows, list):
                _send(sender, _error(rows), last=True)
        growing = [(sender, rows[0]) for sender, rows in zip(senders, read, strict=True) if isinstance(rows, list)]
        ended: set[int] = set()
        try:
            for _ in generate(self.decoder, [reply for _, reply in growing]):
                for place, (sender, reply) in enumerate(growing):
                    if place not in ended and _show(sender, reply):
                        ended.add(place)
        except Exception as error:  # as in execute
            for place, (sender, _) in enumerate(growing):
                if place not in ended:
                    _send(sender, _error(_internal(error)), last=True)


def _column(request: Any, name: str) -> Any:
    """The values of an input with one number or text per row; None where it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy()
    if values.ndim != 2 or values.shape[1] != 1:
        raise ValueError(f"{name} has the shape {list(values.shape)}; one value per row is wanted.")
    return values[:, 0]


def _show(sender: Any, reply: Reply) -> bool:
    """Sends what is new of a streamed reply; whether it has ended."""
    if sender.is_cancelled():
        _cancel([reply])
    text, tokens = reply.fresh()
    _send(sender, _answer([text], [tokens], [reply.finish or ""]), last=reply.finish is not None)
    return reply.finish is not None


def _response(rows: Any, failed: Any) -> Any:
    if not isinstance(rows, list):
        return _error(rows)
    if failed is not None:
        return _error(failed)
    return _answer([reply.text for reply in rows], [reply.tokens for reply in rows], [reply.finish or "" for reply in rows])


def _answer(texts: list[str], tokens: list[list[int]], finish: list[str]) -> Any:
    longest = max(map(len, tokens))
    ids = np.asarray([row + [-1] * (longest - len(row)) for row in tokens], np.int64)
    outputs = {
        "text_output": np.asarray([[text.encode()] for text in texts], object),
        "token_ids": ids,
        "finish_reason": np.asarray([[reason.encode()] for reason in finish], object),
    }
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in outputs.items()])


def _cancel(rows: Sequence[Reply]) -> None:
    for reply in rows:
        reply.finish = reply.finish or "cancelled"


def _internal(error: Exception) -> Any:
    return pb_utils.TritonError(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def _error(error: Any) -> Any:
    return pb_utils.InferenceResponse(error=error)


def _send(sender: Any, response: Any, *, last: bool) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
