"""Several answers to a request, and how likely their tokens were: against the checkpoint's own log-softmax in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from openai import OpenAI
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.pieces import NeverFound, special_stops
from deploy.serve.answering import Answering, Done, Event, Job, Piece
from deploy.serve.metrics import Metrics
from deploy.serve.model import ServedModel
from deploy.serve.protocol.chances import LEAST, Chance, Distribution
from deploy.serve.protocol.logprobs import TokenTexts
from tests.deploy.serve.conftest import Served
from tests.deploy.serve.test_text import byte_tokenizer, fallback_tokenizer

PROMPT, TOKENS = "Hello there", 12
NEAR = 1e-4


@pytest.fixture(scope="module")
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none needed", max_retries=0)


def asked(served: Served, **more: Any) -> dict[str, Any]:
    """Sampled far from the most likely tokens, and to the end: what is reported must be the model's own probabilities all the same."""
    told = {"model": served.name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 1.5, "top_p": 0.9, "seed": 11}
    return told | {"extra_body": {"ignore_eos": True}} | more


def check(served: Served, tokens: Sequence[str], logprobs: Sequence[float], top: Sequence[dict[str, float]], most: int) -> None:
    """Tokens, their logarithms, and the ``most`` likeliest ones with the chosen one, against the checkpoint."""
    tokenizer, model = AutoTokenizer.from_pretrained(served.checkpoint), AutoModelForCausalLM.from_pretrained(served.checkpoint)
    texts = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    ids, prompt = [texts.index(token) for token in tokens], tokenizer(PROMPT).input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    for place, row in enumerate(torch.log_softmax(logits.double(), -1).tolist()):
        assert logprobs[place] == pytest.approx(row[ids[place]], abs=NEAR)
        likeliest = sorted(range(len(row)), key=lambda number: -row[number])[:most]
        assert top[place] == pytest.approx({texts[number]: row[number] for number in (*likeliest, ids[place])}, abs=NEAR)


def test_completions_say_how_likely_their_tokens_were(client: OpenAI, served: Served) -> None:
    whole: Any = client.completions.create(**asked(served), logprobs=3).choices[0]
    told: Any = whole.logprobs
    assert len(told.tokens) == TOKENS
    check(served, told.tokens, told.token_logprobs, told.top_logprobs, 3)
    assert {len(top) for top in told.top_logprobs} == {3, 4}, "nothing unlikely was drawn"
    special = {"<pad>", "<s>", "</s>", "<unk>"}
    assert "".join(token for token in told.tokens if token not in special) == whole.text
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        assert token in special or whole.text[offset] == token
    chunks: Any = list(client.completions.create(**asked(served), logprobs=3, stream=True))
    streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices and chunk.choices[0].logprobs]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for one in streamed for value in getattr(one, key)] == getattr(told, key)
    none: Any = client.completions.create(**asked(served), logprobs=0).choices[0].logprobs
    assert none.top_logprobs == [{token: value} for token, value in zip(told.tokens, told.token_logprobs, strict=True)]
    assert client.completions.create(**asked(served)).choices[0].logprobs is None


def test_chat_says_how_likely_its_tokens_were(client: OpenAI, served: Served) -> None:
    told = asked(served) | {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 2}
    told.pop("prompt")
    whole: Any = client.chat.completions.create(**told).choices[0].logprobs
    assert len(whole.content) == TOKENS
    for token in whole.content:
        assert token.bytes == list(token.token.encode())
        assert len(token.top_logprobs) == 2
        assert max(token.logprob, token.top_logprobs[1].logprob) <= token.top_logprobs[0].logprob
    chunks: Any = client.chat.completions.create(**told, stream=True)
    pieces = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices and chunk.choices[0].logprobs]
    assert [token.model_dump() for piece in pieces for token in piece.content or ()] == [token.model_dump() for token in whole.content]


def test_four_answers_have_seeds_of_their_own(client: OpenAI, served: Served) -> None:
    whole: Any = client.completions.create(**asked(served), n=4)
    texts = [choice.text for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(PROMPT), 4 * TOKENS)
    assert texts == [client.completions.create(**asked(served, seed=11 + place)).choices[0].text for place in range(4)]
    counted = {"include_usage": True, "continuous_usage_stats": True}
    chunks: Any = list(client.completions.create(**asked(served), n=4, stream=True, stream_options=cast(Any, counted)))
    streamed = ["".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == place) for place in range(4)]
    assert streamed == texts
    reasons = sorted((choice.index, choice.finish_reason) for chunk in chunks for choice in chunk.choices if choice.finish_reason)
    assert reasons == [(place, "length") for place in range(4)]
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert (len(counts), counts[-1], chunks[-1].choices) == (len(chunks), 4 * TOKENS, [])
    assert counts == sorted(counts)


def test_a_chat_has_several_answers_too(client: OpenAI, served: Served) -> None:
    told = asked(served) | {"messages": [{"role": "user", "content": "Hi"}], "n": 2}
    told.pop("prompt")
    whole: Any = client.chat.completions.create(**told)
    chunks: Any = list(client.chat.completions.create(**told, stream=True))
    for place, choice in enumerate(whole.choices):
        mine = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == place]
        assert mine[0].role == "assistant"
        assert "".join(delta.content or "" for delta in mine) == choice.message.content


def with_specials() -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<end>", "<turn>")])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return tokenizer


def answered(ids: Sequence[int], *stops: str) -> list[Event]:
    """Events of an answer of these tokens, each of which was certain."""
    tokenizer, heard = with_specials(), cast(list[Event], [])
    model = SimpleNamespace(fast=tokenizer, ends=frozenset({tokenizer.token_to_id("<end>")}))
    job = Job([65], {}, stops, heard.append, logprobs=0, stop_tokens=special_stops(stops, tokenizer))
    answering = Answering(job, cast(ServedModel, model), Metrics())
    for place, token in enumerate(ids):
        if answering.token(token, place == len(ids) - 1, Chance(token, 0.0, ())):
            break
    return heard


def test_a_stop_string_that_is_a_special_token_stops_on_its_id_and_where_the_model_spells_it() -> None:
    tokenizer = with_specials()
    assert special_stops(["x", "<turn>"], tokenizer) == {tokenizer.token_to_id("<turn>")}
    for text in ("ab<turn>cd", "ab<turn>"):
        for ids in (tokenizer.encode(text).ids, byte_tokenizer().encode(text).ids):
            heard = answered(ids, "<turn>")
            assert "".join(event.text for event in heard if isinstance(event, Piece)) == "ab"
            assert isinstance(heard[-1], Done)
            assert heard[-1].reason == "stop"


@pytest.mark.parametrize("stop", ["<turn>\n", "a<end>", "<turn><end>"])
def test_a_stop_string_around_a_special_token_can_never_be_found(stop: str) -> None:
    with pytest.raises(NeverFound, match=r"special token '<(turn|end)>' and more") as refused:
        special_stops(["x", stop], with_specials())
    assert refused.value.place == 1
    assert special_stops(["<think>a", "<turn"], with_specials()) == frozenset()


def test_tokens_are_told_up_to_where_the_text_is_cut() -> None:
    tokenizer = with_specials()
    cases = {
        ("ab€", ""): ["a", "b", "\\xe2", "\\x82", "\\xac"],
        ("abc", "bc"): ["a"],
        ("a<turn>b<end>", ""): ["a", "<turn>", "b"],
        ("a€b", "€"): ["a"],
    }
    texts = TokenTexts(tokenizer)
    for (text, stop), tokens in cases.items():
        heard = answered(tokenizer.encode(text).ids, *((stop,) if stop else ()))
        scored = [one for event in heard if isinstance(event, Piece) for one in event.scored]
        assert [texts.text(one.chance.token) for one in scored] == tokens
        assert [one.offset for one in scored] == sorted(one.offset for one in scored)


def test_half_a_character_at_the_end_is_told_with_its_bytes() -> None:
    ids = with_specials().encode("a€").ids[:-1]
    heard = answered(ids)
    assert [one.chance.token for event in heard if isinstance(event, Piece) for one in event.scored] == ids


def test_a_token_is_its_own_part_of_the_text() -> None:
    texts = TokenTexts(fallback_tokenizer())
    assert [texts.text(token) for token in (257, 258, 259, ord("x"))] == [" Paris", " is", "a", "x"]
    assert texts.text("é".encode()[0]) == "\\xc3"
    assert TokenTexts(byte_tokenizer()).bytes(10**6) == b""


def test_probabilities_are_a_softmax_and_minus_infinity_is_a_number() -> None:
    said = Distribution([[0.0, 1.0, float("-inf"), 1.0]])
    chance = said.chance(2, 5)
    assert chance.logprob == LEAST
    assert [token for token, _ in chance.top] == [1, 3, 0, 2]
    wanted = torch.log_softmax(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), -1)
    assert chance.top[0][1] == pytest.approx(wanted[1].item())
    assert said.chance(0, 0).top == ()
