"""Runs inside an environment that has llama-cpp-python: reads one job (JSON) on stdin, writes its answer (JSON) to the file it names.

It imports nothing of Trimline, since that environment need not have it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

F32 = 0  # ggml's number for it: an fp16 cache would add its own rounding to the comparison


def main() -> None:
    """Does the job on stdin."""
    job = json.load(sys.stdin)
    answer = {"version": llama_cpp.__version__} | {"quantise": quantise, "measure": measure}[job["task"]](job)
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


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
