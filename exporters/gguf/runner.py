"""Runs inside an environment that has llama-cpp-python: one job (a line of JSON) on stdin, its answer (another) on stdout.

It imports nothing of Trimline, since that environment need not have it, and so says here what ``pipeline.common.children`` says
for other children: replies alone on stdout, and no work for a parent that has ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import llama_cpp
import numpy as np

F32 = 0  # ggml's number for it: an fp16 cache would add its own rounding to the comparison

DONE = threading.Event()


def main() -> None:
    """Does the job on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    answer = {"version": llama_cpp.__version__} | {"quantise": quantise, "measure": measure}[job["do"]](job)
    DONE.set()
    print(json.dumps(answer), file=answers, flush=True)


def end_with_parent() -> None:
    """Ends this process when its parent has: nothing more comes on stdin."""
    os.read(0, 1)
    if not DONE.is_set():
        os._exit(1)


def quantise(job: dict[str, Any]) -> dict[str, Any]:
    """``model`` into ``out``, as llama.cpp's file type ``file_type``."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = job["file_type"], job["threads"]
    status = llama_cpp.llama_model_quantize(job["model"].encode(), job["out"].encode(), settings)
    return {"status": int(status)}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Logits of ``rows`` (raw fp32 in the file ``logits``), losses of ``windows``, ids of ``text``, greedy tokens after ``prompt``."""
    longest = max(len(row) for row in [*job["rows"], *job["windows"], job["prompt"] + [0] * job["greedy"]])
    model = llama_cpp.Llama(
        job["model"],
        n_ctx=longest + 1,
        n_batch=longest + 1,
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        logits_all=True,
        type_k=F32,
        type_v=F32,
        verbose=True,  # on stderr, where the parent looks for the reason when loading fails
    )
    found = np.stack([logits(model, row) for row in job["rows"]]).astype(np.float32)
    found.tofile(job["logits"])
    return {
        "shape": found.shape,
        "losses": [loss(logits(model, row), row) for row in job["windows"]],
        "text": model.tokenize(job["text"].encode(), add_bos=True, special=False),
        "greedy": greedy(model, job["prompt"], job["greedy"]),
    }


def logits(model: Any, row: list[int]) -> np.ndarray:
    """Logits of every position, shape (tokens, vocabulary), in one pass over an empty cache."""
    model.reset()
    model.eval(row)
    return model.scores[: len(row)].copy()


def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """The most likely tokens after a prompt, one by one through the cache."""
    found: list[int] = []
    row = logits(model, prompt)[-1]
    for _ in range(tokens):
        found.append(int(row.argmax()))
        model.eval(found[-1:])
        row = model.scores[model.n_tokens - 1]
    return found


def loss(scores: np.ndarray, row: list[int]) -> float:
    """Mean cross-entropy per predicted token, nats."""
    rows = scores[:-1].astype(np.float64)
    top = rows.max(-1)
    sums = np.log(np.exp(rows - top[:, None]).sum(-1)) + top
    return float((sums - rows[np.arange(len(rows)), row[1:]]).mean())


main()
