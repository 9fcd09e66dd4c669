"""A client of onnxruntime-genai in a process of its own: opens a folder, generates, says how long it took.

It imports nothing of Trimline's: what it measures, any program of that library would see.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import numpy as np
import onnxruntime_genai as genai


def opened(folder: str, threads: int) -> Any:
    """A model on so many threads: onnxruntime-genai's own choice was one, on two cores."""
    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    return genai.Model(config)


def generate(model: Any, vocabulary: int, prompt: int, output: int, seed: int) -> dict[str, float]:
    """Seconds of a random prompt, and of one of the steps after it, end-of-text tokens ignored."""
    chance = random.Random(seed)
    params = genai.GeneratorParams(model)
    length = prompt + output
    params.set_search_options(max_length=length, min_length=length, do_sample=False, batch_size=1)
    generator = genai.Generator(model, params)
    started = time.monotonic()
    generator.append_tokens(np.asarray([chance.randrange(vocabulary) for _ in range(prompt)], np.int32))
    generator.generate_next_token()  # out of the prompt's logits
    first = time.monotonic()
    for _ in range(output - 1):
        generator.generate_next_token()
    return {"prefill": first - started, "decode": (time.monotonic() - first) / (output - 1)}


def main() -> None:
    """A JSON object per line in, one out."""
    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request.pop("do") == "open":
            model, reply = opened(**request), {}
        else:
            reply = generate(model, **request)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
