"""Plain values are those of YAML 1.2's core schema, whichever of PyYAML's parsers reads them; the rest is refused by its line."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.common import plain_yaml
from pipeline.common.errors import TrimlineError
from pipeline.common.plain_yaml import MOST_VALUES, read_plain_yaml, write_plain_yaml


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def parser(request, monkeypatch):
    if not hasattr(yaml, request.param):
        pytest.skip("this PyYAML was built without libyaml")
    monkeypatch.setattr(plain_yaml, "PARSER", getattr(yaml, request.param))


# Section 10.3.2 of the specification, and what YAML 1.1 takes for something else.
WORDS: dict[str, Any] = {
    "null": None, "Null": None, "~": None, "": None, "nil": "nil",
    "true": True, "TRUE": True, "False": False, "yes": "yes", "no": "no", "on": "on", "Off": "Off", "y": "y",
    "0": 0, "12": 12, "-12": -12, "+12": 12, "0o17": 15, "0x1F": 31, "1_000": "1_000", "0b101": "0b101", "1:30": "1:30", "-0o7": "-0o7",
    ".5": 0.5, "5.": 5.0, "-1.5": -1.5, "1e3": 1000.0, "1E-3": 0.001, "+12e03": 12000.0, "1:30.5": "1:30.5", "e3": "e3", ".": ".",
    ".inf": math.inf, "-.INF": -math.inf, "+.Inf": math.inf, "inf": "inf",
    "2024-01-01": "2024-01-01", "2024-01-01 10:00:00": "2024-01-01 10:00:00", "=": "=", "<<": "<<", "0.": 0.0, "00.5": 0.5,
}  # fmt: skip


@pytest.mark.usefixtures("parser")
def test_the_core_schema():
    for word, value in WORDS.items():
        found = read_plain_yaml(f"a: {word}\nb: [{word or '~'}]\nc: '{word}'\n", "it")
        assert (found["a"], type(found["a"])) == (value, type(value)), word
        assert found == {"a": value, "b": [value], "c": word}
    assert math.isnan(read_plain_yaml(".nan", "it"))
    assert read_plain_yaml("", "it") is None
    assert read_plain_yaml('%YAML 1.2\n---\na: |\n  010\nb: "0512"\n...\n', "it") == {"a": "010\n", "b": "0512"}


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 010\n", "the number 010 in line 2, which YAML 1.2 reads as 10 and YAML 1.1 as octal. Write 10,"),
        ("- -0512\n", "Write -512"),
        ("[08]", "Write 8"),
        ("0_10", "Write 10"),
        ("a: 1\na: 2\n", r"names 'a' twice \(line 2\)"),
        ("a: {b: 1,\n b: 2}\n", r"names 'b' twice \(line 2\)"),
        ("1: 2\n", "the key '1' in line 1, which is no word"),
        ("[1]: 2\n", "the key '…' in line 1"),
        ("a: !!int 3\n", "the tag 'tag:yaml.org,2002:int' in line 1"),
        ("a: !x 3\n", "the tag '!x' in line 1"),
        ("a: &b [*b]\n", r"aliases, which are not read \(line 1\)"),
        ("a: 1\n---\nb: 1\n", "a second document, from line 2 on"),
        ("%YAML 1.1\n---\na: 1\n", "says that it is YAML 1.1"),
        ("- " * 100, "nests more than 64"),
        ("a: [1\n", r"not valid YAML: line \d: .*Mend that place"),
        ("a: 1\n b: 2\n", r"not valid YAML: line 2: mapping values are not allowed .*\. Mend that place"),
        ("a:\n  b: 1\n\tc: 2\n", r"not valid YAML: line 3: .*\. Indent that line with spaces: it begins with a tab"),
        ('a: "\\ud800"', "not valid YAML"),
        ("a: " + "9" * 9000, "not valid YAML"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text, words):
    with pytest.raises(TrimlineError, match=words) as caught:
        read_plain_yaml(text, "it")
    assert "<unicode string>" not in str(caught.value)


@pytest.mark.usefixtures("parser")
def test_what_is_larger_than_any_recipe_is_refused_where_it_grows_too_large():
    started = time.perf_counter()
    with pytest.raises(TrimlineError, match="more than 1,000 entries in line 2"):
        read_plain_yaml("a:\n" + "- {b: 1}\n" * 60_000, "it")
    assert time.perf_counter() - started < 10  # all of it takes a minute by the slower parser
    assert len(read_plain_yaml("a: [" + "1," * 2000 + "]", "it")["a"]) == 2000


def test_there_is_an_end_to_numbers_too(monkeypatch):
    monkeypatch.setattr(plain_yaml, "MOST_VALUES", 3000)
    with pytest.raises(TrimlineError, match="more than 3,000 values"):
        read_plain_yaml("[" + "1," * 3001 + "]", "it")
    assert MOST_VALUES >= 128 * 2048


WORD = st.sampled_from([*WORDS, "010", "08", "-07"]) | st.text(max_size=6)
VALUE = st.recursive(
    WORD | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@settings(max_examples=40, deadline=None)
@example({"a": "\x85", "b": "\u2028"})
@given(st.dictionaries(WORD.filter(bool), VALUE, max_size=3))
def test_what_is_written_is_read_as_the_same_by_both_versions(value):
    text = write_plain_yaml(value)
    assert read_plain_yaml(text, "it") == value
    assert yaml.safe_load(text) == value
