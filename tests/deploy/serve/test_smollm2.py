"""The built-in model behind a real server: the checkpoint's own tokens, and a server that stays responsive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from tests.deploy.serve.conftest import serving

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "🎉 Party"]
TOKENS = 32
TIE = 1e-3  # logits that are nearer than the gate's bar may change places

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]  # converting, exporting and gating the model take most of it


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("smollm2-onnx")
    export(smollm2, ExportSlice(), RunOptions(), out, Events())
    with serving(out, "--name", "smollm2") as (address, _):
        yield address


def test_greedy_texts_are_those_of_the_checkpoint(url: str, smollm2: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    client = OpenAI(base_url=f"{url}/v1", api_key="none needed")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Who are you?"}], tokenize=False, add_generation_prompt=True)
    for prompt in (*PROMPTS, chat):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            told = model.generate(
                ids,
                do_sample=False,
                max_new_tokens=TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
                attention_mask=torch.ones_like(ids),
            )
        margins = [float((best := logits[0].topk(2).values)[0] - best[1]) for logits in told.logits]
        assert min(margins) > TIE, f"{prompt!r} has a tie, so that its greedy text is not one text; take another prompt"
        expected = tokenizer.decode(told.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        pieces = client.completions.create(model="smollm2", prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == expected
    asked = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Who are you?"}], max_tokens=TOKENS, temperature=0
    )
    assert asked.choices[0].message.content == expected


def test_health_is_told_while_a_long_prompt_is_read(url: str) -> None:
    body = {"model": "smollm2", "prompt": "word " * 3000, "max_tokens": 1}
    ended: list[float] = []

    def read() -> None:
        assert httpx2.post(f"{url}/v1/completions", json=body, timeout=600).status_code == 200
        ended.append(time.monotonic())

    reader = threading.Thread(target=read)
    began = time.monotonic()
    reader.start()
    slowest = 0.0
    with httpx2.Client(base_url=url, timeout=600) as client:
        while reader.is_alive():
            asked = time.monotonic()
            assert client.get("/health/ready").status_code == 200
            slowest = max(slowest, time.monotonic() - asked)
            time.sleep(0.1)
    reader.join()
    assert slowest < (ended[0] - began) / 2, "the server was silent while it read the prompt"
