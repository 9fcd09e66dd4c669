"""Whether a model still finds what stands far back in its text: eight people by first name and surname, and at the end one first name.

The pairs are made up, so nothing of them can be known from training. Plain sentences that repeat stand between eight such as ``On the way
we met Martin Fisher.``, over the whole length; the last line ends in one of the first names. The answer is the likeliest of the eight
surnames, by its first token, in one pass: guessing is right one time in eight. Lengths double up to what the model was made to read.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pipeline.common.events import Events
from pipeline.evaluate.recipe import RetrievalSlice
from pipeline.sources.windows import tokenize

RESULT = "retrieval.json"
SHORTEST = 256
REACH = 16_384  # tokens, where neither model nor recipe says less
PEOPLE = 8
FIRST_NAMES = ("Martin", "Anna", "Peter", "Julia", "Thomas", "Laura", "Paul", "Emma", "Daniel", "Sarah", "David", "Clara", "Simon", "Helen")
SURNAMES = [
    "Fisher",
    "Baker",
    "Miller",
    "Carter",
    "Hunter",
    "Cooper",
    "Mason",
    "Parker",
    "Taylor",
    "Walker",
    "Stone",
    "Brook",
    "Wood",
    "Hill",
    "King",
    "Young",
    "Bell",
    "Rose",
    "North",
    "Green",
    "Black",
    "White",
    "Brown",
    "Gray",
]
FILLER = (
    "The road goes past the old mill and down to the lake.",
    "In the morning the shops open at nine and close at six.",
    "Nobody knew how long the meeting would take.",
    "She put the plates on the table and opened the door to the yard.",
    "Most of the trees along this street were planted by the school.",
    "The bus was late again, so they walked the last part of the way.",
    "It rained for two days, and then the sun came out.",
    "He read the same page twice and still did not remember it.",
    "There is a small museum behind the station that few people visit.",
    "After lunch the children went back to their rooms.",
    "The team finished the work before anybody had asked for it.",
    "A long fence runs from the barn to the edge of the field.",
)


@dataclass(frozen=True)
class Prompt:
    """A text that ends in a question.

    Attributes:
        tokens: (N,) ids.
        choices: first token of each surname, no two alike.
        answer: which of them is right.
    """

    tokens: torch.Tensor
    choices: tuple[int, ...]
    answer: int


def lengths(context: int, recipe: RetrievalSlice) -> list[int]:
    """From 256 tokens, each twice the one before, up to ``context``, the recipe's bound, or 16,384; none where that is less than 256.

    Args:
        context: positions that the model was made for; 0 where its config does not say.
        recipe: its bound.
    """
    most = min(context or REACH, recipe.longest or REACH, REACH)
    return [SHORTEST << times for times in range(REACH.bit_length()) if SHORTEST << times <= most]


def prompts(tokenizer: Any, length: int, count: int) -> Iterator[Prompt]:
    """Texts of at most ``length`` tokens; one after the other asks for people from the first to the last, and round again; fewer
    than eight ask for people spread over the text.

    Nothing where the tokenizer does not tell eight surnames apart by their first tokens, or needs more than ``length`` for eight lines.
    """
    firsts = {surname: _first(tokenizer, surname) for surname in SURNAMES}
    for number in range(count):
        draw = random.Random(f"{length} {number}")
        surnames = _told_apart(firsts, draw)
        people = list(zip(draw.sample(FIRST_NAMES, PEOPLE), surnames, strict=False))
        filler = draw.sample(FILLER, len(FILLER))
        asked = number % PEOPLE if count >= PEOPLE else number * PEOPLE // count
        if len(people) < PEOPLE or len((texts := partial(_text, tokenizer, people, filler, people[asked][0]))(0)) > length:
            return
        yield Prompt(_longest(texts, length), tuple(firsts[surname] for surname in surnames), asked)


def _longest(texts: Callable[[int], torch.Tensor], length: int) -> torch.Tensor:
    """The longest of the texts with more and more sentences that has no more tokens than that, found by halving."""
    low, high = 0, length // 2  # a sentence has more than two tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(texts(middle)) <= length else (low, middle - 1)
    return texts(low)


def _text(tokenizer: Any, people: list[tuple[str, str]], filler: list[str], asked: str, sentences: int) -> torch.Tensor:
    """Tokens of a text with so many plain sentences, as many behind each of the people as behind any other, to within one."""
    lines: list[str] = []
    for number, (first, surname) in enumerate(people):
        spread = range(sentences * number // PEOPLE, sentences * (number + 1) // PEOPLE)
        lines += [f"On the way we met {first} {surname}.", *(filler[place % len(filler)] for place in spread)]
    return tokenize(tokenizer, "\n".join([*lines, f"In the evening we got a letter from {asked}"]))


def _told_apart(firsts: Mapping[str, int], draw: random.Random) -> list[str]:
    """Eight surnames whose first tokens differ; fewer where there are no more."""
    found: dict[int, str] = {}
    for surname in draw.sample(SURNAMES, len(SURNAMES)):
        found.setdefault(firsts[surname], surname)
    return list(found.values())[:PEOPLE]


def _first(tokenizer: Any, surname: str) -> int:
    """First token of a surname behind a first name: the first that differs, or that is more."""
    before, whole = (tokenize(tokenizer, text).tolist() for text in (FIRST_NAMES[0], f"{FIRST_NAMES[0]} {surname}"))
    return int(next((new for old, new in zip(before, whole, strict=False) if old != new), whole[min(len(before), len(whole) - 1)]))


@torch.inference_mode()
def chosen(model: nn.Module, prompt: Prompt) -> int:
    """Which of the surnames is the likeliest next."""
    device = next(model.parameters()).device
    least = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=prompt.tokens[None].to(device), use_cache=False, **least).logits[0, -1]
    return int(logits[list(prompt.choices)].argmax())


def retrieval_record(model: nn.Module, tokenizer: Any, context: int, recipe: RetrievalSlice, events: Events) -> dict[str, Any]:
    """What a model answers at every length: of each text its choice and the right one, so that two models can be paired."""
    rows = []
    for length in lengths(context, recipe):
        asked, answers = list(prompts(tokenizer, length, recipe.prompts)), []
        if not asked:
            events.note(f"the tokenizer makes no text of {length:,} tokens that could be asked about")
            continue
        with events.progress(f"retrieval from {length:,} tokens", len(asked)) as advance:
            for prompt in asked:
                answers.append(chosen(model, prompt))
                advance(1)
        rows.append({"length": length, "chosen": answers, "right": [prompt.answer for prompt in asked]})
        found = sum(one == prompt.answer for one, prompt in zip(answers, asked, strict=True))
        events.note(f"found {found} of {len(asked)} names in {length:,} tokens")
    return {"chance": 1 / PEOPLE, "lengths": rows}
