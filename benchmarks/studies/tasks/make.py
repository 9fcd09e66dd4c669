"""Questions with four answers, drawn from word lists: ``facts``, ``completion``, ``german`` and ``code``; and ``arithmetic``, computed.

A list is a text file. ``# The capital of {} is`` begins a section: what stands in braces is replaced by what stands before each ``=``, and
what stands behind it is the answer. What braces are followed by in parentheses says what the section is, and is not asked. The wrong
answers of a question are other answers of its section, so that all are of one kind. Everything is drawn with one seed: the same lists give
the same questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

WORDS = Path(__file__).parent / "words"
CHOICES = 4
EACH = 200
Item = dict[str, str | int | list[str]]
NOTE = re.compile(r" \([^)]*\)$")


def questions(name: str) -> list[Item]:
    """The items of one task, in an order drawn by chance: ``question``, four ``choices``, the place of the right one as ``answer``."""
    draw = random.Random(name)
    if name == "arithmetic":
        found = list(arithmetic(draw))
    else:
        found = list(from_lists(sections((WORDS / f"{name}.txt").read_text(encoding="utf-8")), draw))
    if name == "code":
        found += expressions(draw, EACH - len(found))
    draw.shuffle(found)
    return found[:EACH]


def sections(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(template, (key, answer) pairs) of a list."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            found.append((NOTE.sub("", line.removeprefix("#").strip()), []))
        else:
            found[-1][1].extend((key.strip(), answer.strip()) for key, _, answer in (pair.rpartition(" = ") for pair in line.split(";")))
    return found


def from_lists(found: list[tuple[str, list[tuple[str, str]]]], draw: random.Random) -> Iterator[Item]:
    """A question for every pair whose section has three other answers."""
    for template, pairs in found:
        answers = sorted({answer for _, answer in pairs})
        for key, answer in pairs:
            others = [other for other in answers if other != answer]
            if len(others) >= CHOICES - 1:
                yield item(template.replace("{}", key), answer, draw.sample(others, CHOICES - 1), draw)


def item(question: str, answer: str, others: list[str], draw: random.Random) -> Item:
    """One question; the place of its answer is drawn."""
    place = draw.randrange(CHOICES)
    return {"question": question, "choices": [*others[:place], answer, *others[place:]], "answer": place}


def arithmetic(draw: random.Random) -> Iterator[Item]:
    """Forty of each of five kinds, no question twice; wrong answers are near the right one."""
    kinds: tuple[Callable[[random.Random], tuple[str, int]], ...] = (_sum, _difference, _product, _series, _successor)
    for kind in kinds:
        asked: dict[str, int] = {}
        while len(asked) < EACH // len(kinds):
            question, answer = kind(draw)
            asked[question] = answer
        for question, answer in asked.items():
            near = [answer + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if answer + step >= 0]
            yield item(question, str(answer), [str(other) for other in draw.sample(near, CHOICES - 1)], draw)


def _sum(draw: random.Random) -> tuple[str, int]:
    a, b = draw.randint(1, 20), draw.randint(1, 20)
    return f"{a} + {b} =", a + b


def _difference(draw: random.Random) -> tuple[str, int]:
    a, b = sorted((draw.randint(1, 20), draw.randint(1, 20)), reverse=True)
    return f"{a} - {b} =", a - b


def _product(draw: random.Random) -> tuple[str, int]:
    a, b = draw.randint(2, 10), draw.randint(2, 10)
    return f"{a} × {b} =", a * b


def _series(draw: random.Random) -> tuple[str, int]:
    start, step = draw.randint(1, 30), draw.randint(2, 10)
    return ", ".join(str(start + step * place) for place in range(5)) + ",", start + step * 5


def _successor(draw: random.Random) -> tuple[str, int]:
    number = draw.randint(10, 200)
    return f"The number after {number} is", number + 1


def expressions(draw: random.Random, count: int) -> list[Item]:
    """What small expressions of Python give; wrong answers are of the same kind."""
    words = sorted(
        {answer for _, pairs in sections((WORDS / "completion.txt").read_text(encoding="utf-8")) for _, answer in pairs if answer.isalpha()}
    )
    found: dict[str, Item] = {}
    while len(found) < count:
        word, others = draw.choice(words), draw.sample(words, CHOICES)
        numbers = draw.sample(range(1, 60), CHOICES)
        choices: tuple[tuple[str, str, list[str]], ...] = (
            (f"len({word!r})", str(len(word)), [str(len(word) + step) for step in (-1, 1, 2)]),
            (f"{word!r}.upper()", repr(word.upper()), [repr(word), repr(word.title()), repr(word[::-1])]),
            (f"max({numbers})", str(max(numbers)), [str(one) for one in numbers if one != max(numbers)]),
            (
                f"sorted({numbers})",
                str(sorted(numbers)),
                [str(numbers[::-1]), str(sorted(numbers)[::-1]), str(numbers[:2] + sorted(numbers[2:]))],
            ),
            (f"{others[:3]}[1]", repr(others[1]), [repr(others[0]), repr(others[2]), repr(others[3])]),
            (f"{word!r} + {others[0]!r}", repr(word + others[0]), [repr(others[0] + word), repr(f"{word} {others[0]}"), repr(word)]),
        )
        asked, answer, wrong = draw.choice(choices)
        if len({answer, *wrong}) == CHOICES:
            found[asked] = item(f"In Python, {asked} is", answer, wrong, draw)
    return list(found.values())


def lines(name: str) -> str:
    """A task's data file."""
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in questions(name))
