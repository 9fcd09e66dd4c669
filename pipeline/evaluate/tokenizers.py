"""Whether two folders hold the same tokenizer, as transformers opens them: the tokenizer of a model is half of what it says."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.common.errors import GateError, TrimlineError, shortened, shown
from pipeline.live.loading import load_tokenizer

TEXTS = (
    "The river had been frozen for three weeks; then, at 07:45, the ice-breaker came.",
    "  two  spaces,\ttabs\nand a new line\r\n\r\nand more   ",
    "Größenwahn, naïve façade, Ελληνικά, кириллица, 中文字符, 日本語テキスト, 한국어, العربية, हिन्दी, e\u0301 and \u00e9",
    "😀👩‍👩‍👧‍👦 \u200b\ufeff \u00a0 1234567890 3.14159 -1e-5 x86_64",
    'def f(x):\n    return {"key": [x ** 2 for _ in range(10)]}  # <tag attr="1">&amp;</tag>',
    "don't I'll WE'VE it's ABC abc aBc aaaaaaaaaaaaaaaaaaaaaaaa",
    "a",
)
OURS = (
    "This is a fault of the conversion where nobody changed the folder; please report it with the recipe then, and make the folder again."
)


def demand_same_tokenizer(source: Path, result: Path, trust_remote_code: bool = False) -> str:
    """Compares the tokenizer of a result with that of the checkpoint that it was made from.

    Returns:
        What was compared, in words for a record.

    Raises:
        GateError: the source has a tokenizer and the result has none, or another one.
    """
    try:
        theirs = load_tokenizer(source, trust_remote_code=trust_remote_code)
    except TrimlineError as error:  # there is none, or it needs code that is not run: its files were compared byte by byte
        return f"not compared, since the source's does not open: {shortened(error.problem, 300)}"
    if not makes_tokens(theirs):
        return "not compared, since the source has none"
    try:
        ours = load_tokenizer(result, trust_remote_code=trust_remote_code)
    except TrimlineError as error:
        raise GateError(f"The tokenizer of {source} opens, and that of {result} does not: {error.problem}", OURS) from None
    demand_alike(theirs, ours, str(result))
    return f"{len(theirs):,} tokens, {len(texts_for(theirs))} texts, chat templates and settings are the same"


def makes_tokens(tokenizer: Any) -> bool:
    """Whether there is one at all: of a folder without any, transformers makes an empty tokenizer for some families."""
    return bool(tokenizer("a", verbose=False)["input_ids"])


def demand_alike(theirs: Any, ours: Any, place: str) -> None:
    """Compares two tokenizers that transformers opened.

    A chat template is not rendered: it may be anybody's, and the same text with the same special tokens gives the same.

    Args:
        theirs: the reference.
        ours: what stands in ``place``, for messages.

    Raises:
        GateError: names the first difference.
    """
    for text in texts_for(theirs):
        for special in (True, False):
            reference, found = (list(one(text, verbose=False, add_special_tokens=special)["input_ids"]) for one in (theirs, ours))
            if reference != found:
                pairs = enumerate(zip_longest(reference, found))
                at, (wanted, made) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
                raise _other(place, f"makes {shown(made)} at place {at} of {shown(text)} where the source's makes {shown(wanted)}")
    views = {
        "vocabulary": lambda one: one.get_vocab(),
        "special tokens": lambda one: one.special_tokens_map,
        "chat template": lambda one: one.chat_template,
        "longest text": lambda one: one.model_max_length,
        "side of the padding": lambda one: one.padding_side,
        "side of the truncation": lambda one: one.truncation_side,
        "text of its tokens": lambda one: [one.decode([token]) for token in range(min(len(one), 256))],
        "tokenizer.json": lambda one: one.backend_tokenizer.to_str() if getattr(one, "is_fast", False) else "",
    }
    for what, view in views.items():
        reference, found = view(theirs), view(ours)
        if reference != found:
            raise _other(place, f"has another {what}{_first(reference, found)}")


def texts_for(tokenizer: Any) -> tuple[str, ...]:
    """What two tokenizers are compared on: texts of many kinds, and every special token inside a text."""
    return (*TEXTS, *(f"a{token} b" for token in tokenizer.all_special_tokens))


def _first(reference: Any, found: Any) -> str:
    """Where two mappings differ first, or two texts; empty for other things."""
    if isinstance(reference, dict) and isinstance(found, dict):
        key = next((key for key in (*reference, *found) if reference.get(key) != found.get(key)), None)
        values = (reference.get(key), found.get(key))
        return f": {shown(key)} is {shown(values[1])} and not {shown(values[0])}"
    return ""


def _other(place: str, what: str) -> GateError:
    return GateError(f"The tokenizer of {place} is not the source's: it {what}.", OURS)
