"""Characters are whole and stop strings are found, wherever tokens and pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from deploy.pieces import Detokeniser
from deploy.serve.text import StopFilter

WORDS = "Ab, é 漢字 🎉👩‍👩‍👧 end"


def byte_tokenizer() -> Tokenizer:
    """One token per byte: the characters of a text are cut in as many places as they can be."""
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: words begin with a mark, and what has no token is written in bytes."""
    vocabulary = {f"<0x{number:02X}>": number for number in range(256)} | {"<unk>": 256, "▁Paris": 257, "▁is": 258, "a": 259}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokeniser = Detokeniser(tokenizer, prompt or [])
    return [*(detokeniser.push(token) for token in ids), detokeniser.flush()]


@given(st.text(alphabet=st.sampled_from(WORDS), max_size=20))
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    tokenizer = byte_tokenizer()
    pieces = streamed(tokenizer, tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_end_within_a_character_is_shown_as_one() -> None:
    tokenizer = byte_tokenizer()
    assert streamed(tokenizer, tokenizer.encode("a🎉").ids[:-1]) == ["a", "", "", "", "\ufffd"]


def test_bytes_of_a_fallback_make_characters() -> None:
    assert streamed(fallback_tokenizer(), [257, *"é".encode()], [258]) == [" Paris", "", "é", ""]


def test_bytes_that_make_no_character_after_a_line_s_end_do_not_end_the_answer() -> None:
    lone = "é".encode()[0]
    pieces = streamed(fallback_tokenizer(), [ord("\n"), lone, 257, 258, *"é".encode(), 258], [258])
    assert pieces == ["\n", "", "\ufffd Paris", " is", "", "é", " is", ""]
    assert streamed(fallback_tokenizer(), [ord("\n"), lone], [258]) == ["\n", "", "\ufffd"]


@given(st.text(alphabet=st.sampled_from(WORDS), max_size=8), st.text(alphabet=st.sampled_from(WORDS), max_size=8), st.integers(0, 5))
def test_an_answer_never_repeats_the_end_of_its_prompt(before: str, after: str, cut: int) -> None:
    tokenizer = byte_tokenizer()
    asked, said = tokenizer.encode(before).ids, tokenizer.encode(after).ids
    begun = asked[: max(0, len(asked) - cut)]  # may end within a character, which nothing completes
    assert "".join(streamed(tokenizer, said, begun)) == after
    assert "".join(streamed(tokenizer, asked[len(begun) :] + said, begun)) in _rests(before + after, len(begun))


def _rests(text: str, begun: int) -> set[str]:
    """What may follow on so many bytes of a text: the rest; a character that they cut is whole in it."""
    raw = text.encode()
    start = next(start for start in range(begun, -1, -1) if start == len(raw) or raw[start] & 0xC0 != 0x80)
    return {raw[start:].decode()}


def test_a_broken_character_that_a_prompt_ends_in_is_its_own() -> None:
    tokenizer = byte_tokenizer()
    prompt = tokenizer.encode("abc\ufffd").ids
    assert streamed(tokenizer, tokenizer.encode("d").ids, prompt) == ["d", ""]
    half = tokenizer.encode("🎉").ids
    assert streamed(tokenizer, [*half[:2], *tokenizer.encode("xé").ids], prompt) == ["", "", "\ufffdx", "", "é", ""]
    assert streamed(tokenizer, half[2:], [*prompt, *half[:2]]) == ["", "🎉", ""], "a whole one behind a broken one"
    assert streamed(tokenizer, half[2:], [*tokenizer.encode("abc").ids, *half[:2]]) == ["", "🎉", ""]
    assert streamed(tokenizer, half[2:3], [*tokenizer.encode("abc").ids, *half[:2]]) == ["", "\ufffd"]


def test_the_blank_before_a_first_word_stays_after_a_prompt() -> None:
    assert "".join(streamed(fallback_tokenizer(), [257], [258])) == " Paris"
    assert "".join(streamed(fallback_tokenizer(), [257])) == "Paris"


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Cut where the first stop string to be complete begins, letter by letter."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 6), min_size=1, max_size=30),
)
def test_stop_strings_are_found_across_pieces(text: str, stops: list[str], sizes: list[int]) -> None:
    filtered, sent, rest = StopFilter(stops), "", text
    while rest:
        size = sizes[len(rest) % len(sizes)]
        sent += filtered.push(rest[:size])
        rest = rest[size:]
    sent += filtered.flush()
    assert (sent, filtered.stopped) == expected(text, stops)


@pytest.mark.parametrize(("pieces", "sent"), [(["a", "b"], ["", "ab"]), (["xa", "y"], ["x", "ay"]), (["x", "y"], ["x", "y"])])
def test_only_what_may_become_a_stop_string_waits(pieces: list[str], sent: list[str]) -> None:
    filtered = StopFilter(["aZ"])
    assert [filtered.push(piece) for piece in pieces] == sent
