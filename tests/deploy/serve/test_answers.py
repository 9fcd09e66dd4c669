"""The official client of OpenAI against a real server: same tokens as the checkpoint, whole or streamed."""

from __future__ import annotations

import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.deploy.serve.conftest import CONTEXT, Served

PROMPTS = ["Hello there", "a", "To be, or not to be: that is the question", "def f(x):\n\treturn 1"]
TOKENS = 40


@pytest.fixture(scope="module")
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none needed", max_retries=0)


def greedy(served: Served, prompt: str, tokens: int = TOKENS) -> tuple[str, int]:
    """Text and number of the checkpoint's own greedy tokens in transformers."""
    tokenizer = AutoTokenizer.from_pretrained(served.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(served.checkpoint)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)[0, ids.shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True), len(answer)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_the_checkpoint(client: OpenAI, served: Served, prompt: str) -> None:
    answer = client.completions.create(model=served.name, prompt=prompt, max_tokens=TOKENS, temperature=0)
    text, tokens = greedy(served, prompt)
    assert len(text) >= 3, "special tokens only would compare nothing"
    assert answer.choices[0].text == text
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), tokens)
    assert answer.choices[0].finish_reason == ("length" if tokens == TOKENS else "stop")


def test_a_stream_adds_up_to_the_whole_answer(client: OpenAI, served: Served) -> None:
    asked = {"model": served.name, "prompt": "Once", "max_tokens": 30, "temperature": 1.0, "seed": 5}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert len(chunks) > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_a_prompt_may_be_token_ids(client: OpenAI, served: Served) -> None:
    ids = AutoTokenizer.from_pretrained(served.checkpoint)("Hello there").input_ids
    answers = [
        client.completions.create(model=served.name, prompt=prompt, max_tokens=8, temperature=0) for prompt in (ids, [ids], ["Hello there"])
    ]
    assert {answer.choices[0].text for answer in answers} == {greedy(served, "Hello there", 8)[0]}


def test_chat_follows_the_models_template(client: OpenAI, served: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    answer = client.chat.completions.create(model=served.name, messages=messages, max_completion_tokens=12, temperature=0)
    prompt = "s:Be brief.\nu:Hello\na:"
    assert answer.choices[0].message.content == greedy(served, prompt, 12)[0]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI, served: Served) -> None:
    ask = {"role": "user", "content": "Hello"}
    first = client.chat.completions.create(model=served.name, messages=[ask], max_tokens=3, temperature=0).choices[0].message
    again = client.chat.completions.create(model=served.name, messages=[ask, first, ask], max_tokens=3)
    assert again.usage is not None
    assert again.usage.prompt_tokens == len(f"u:Hello\na:{first.content}\nu:Hello\na:")


def test_chat_streams(client: OpenAI, served: Served) -> None:
    asked = {"model": served.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_string_ends_the_text_before_it(client: OpenAI, served: Served) -> None:
    text, _ = greedy(served, "Hello there")
    stop = text[4:7]  # three characters are three tokens here
    cut = text.index(stop)
    for stream in (False, True):
        answer = client.completions.create(
            model=served.name, prompt="Hello there", max_tokens=TOKENS, temperature=0, stop=[stop, "never"], stream=stream
        )
        chunks = list(answer) if stream else [answer]
        assert "".join(chunk.choices[0].text for chunk in chunks) == text[:cut]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_text_and_none_does_not(client: OpenAI, served: Served) -> None:
    def sampled(**more: int) -> str:
        asked = {
            "model": served.name,
            "prompt": "x",
            "max_tokens": 30,
            "temperature": 1.0,
            "top_p": 0.9,
            "extra_body": {"ignore_eos": True},
        }
        return client.completions.create(**asked, **more).choices[0].text

    assert sampled(seed=3) == sampled(seed=3)
    assert len({sampled(seed=3), sampled(seed=4), sampled(), sampled()}) == 4


def test_extensions_reach_the_runtime(client: OpenAI, served: Served) -> None:
    asked = {"model": served.name, "prompt": "Hello there", "max_tokens": TOKENS, "temperature": 2.0}
    most_likely = client.completions.create(**asked, extra_body={"top_k": 1})
    assert most_likely.choices[0].text == greedy(served, "Hello there")[0]
    for seed in range(5):
        endless = client.completions.create(**asked | {"max_tokens": 200}, seed=seed, extra_body={"ignore_eos": True})
        assert endless.usage is not None
        assert (endless.usage.completion_tokens, endless.choices[0].finish_reason) == (200, "length")


def test_the_end_of_text_token_ends_the_text(client: OpenAI, served: Served) -> None:
    for seed in range(20):
        answer = client.completions.create(model=served.name, prompt="x", max_tokens=1000, temperature=1.0, seed=seed)
        assert answer.usage is not None
        assert (answer.choices[0].finish_reason == "stop") == (answer.usage.completion_tokens < 1000)
        if answer.choices[0].finish_reason == "stop":
            return
    raise AssertionError("no text ended, so nothing was tested")


def test_models_are_listed(client: OpenAI, served: Served) -> None:
    assert [model.id for model in client.models.list()] == [served.name]
    assert client.models.retrieve(served.name).owned_by == "trimline"
    with pytest.raises(openai.NotFoundError, match="only 'tiny-onnx'"):
        client.models.retrieve("gpt")


def test_the_context_can_be_filled_and_not_exceeded(client: OpenAI, served: Served) -> None:
    prompt = "a" * (CONTEXT - 8)
    answer = client.completions.create(model=served.name, prompt=prompt, max_tokens=8, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.total_tokens == CONTEXT
    with pytest.raises(openai.BadRequestError, match=f"context is {CONTEXT} tokens") as refused:
        client.completions.create(model=served.name, prompt=prompt, max_tokens=9)
    assert refused.value.code == "context_length_exceeded"
