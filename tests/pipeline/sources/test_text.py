"""Texts by name: what is read, whose they are, and how much of one stands in another."""

from __future__ import annotations

import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.sources.overlap import shared_share
from pipeline.sources.recipe import TextSlice, TextSource
from pipeline.sources.roles import texts_of
from pipeline.sources.text import builtin_halves, identify, load_text, texts

LINE = "A line that is long enough to count, since it has more than sixty characters, number {}."


def paragraphs(text: str) -> set[str]:
    return {" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if len(part) >= 60}


def test_the_builtin_halves_share_nothing():
    halves = builtin_halves()
    calibration, evaluation = halves["calibration"], halves["evaluation"]
    assert min(len(calibration), len(evaluation)) > 150_000
    assert abs(len(calibration) - len(evaluation)) < 0.05 * len(calibration)
    assert not paragraphs(calibration) & paragraphs(evaluation)
    assert shared_share(calibration, evaluation) < 0.001
    assert builtin_halves() == halves


def test_default_text_by_role_and_by_split():
    halves = builtin_halves()
    assert load_text(TextSource(), "evaluation") == halves["evaluation"]
    assert load_text(TextSource(split="calibration"), "evaluation") == halves["calibration"]


def test_rows_of_every_kind_give_the_same_text(tmp_path):
    rows = ["one\u2028two", "three\n\nfour", None, "Zoë \U0001f600"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": row}, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"body": rows, "other": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    wanted = "one\u2028two\n\nthree\n\nfour\n\nZoë \U0001f600"
    for name in ("a.jsonl", "a.parquet"):
        assert load_text(TextSource(source=str(tmp_path / name), column="body"), "calibration") == wanted


def test_a_hub_data_set_is_read_by_column(monkeypatch):
    import datasets

    asked: dict[str, object] = {}

    def load(name, config, **named):
        asked.update(name=name, config=config, **named)
        return datasets.Dataset.from_dict({"body": ["one", "two"], "n": [1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("pipeline.sources.reading._demand_reachable", lambda name: None)
    named = TextSource(source="org/set", config="v1", split="test", column="body")
    assert load_text(named, "calibration") == "one\n\ntwo"
    assert (asked["name"], asked["config"], asked["split"]) == ("org/set", "v1", "test")
    for column, words in (("text", "rows without 'text'"), ("n", "type int")):
        with pytest.raises(TrimlineError, match=words):
            load_text(named.model_copy(update={"column": column}), "calibration")


def test_identity_follows_content_not_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text("the same words")
    first, second = (identify(TextSlice(calibration=TextSource(source=str(tmp_path / name / "t.txt")))) for name in "ab")
    assert first == second
    (tmp_path / "b" / "t.txt").write_text("other words")
    assert identify(TextSlice(calibration=TextSource(source=str(tmp_path / "b" / "t.txt")))) != first
    hub = [identify(TextSlice(calibration=TextSource(source="org/set", split=split))) for split in ("train", "test")]
    assert hub[0]["calibration"] != hub[1]["calibration"]


def lines(*numbers: int) -> str:
    return "".join(LINE.format(number) + "\n" for number in numbers)


@pytest.mark.parametrize(
    ("calibration", "evaluation", "share"),
    [
        (lines(1, 2, 3), lines(4, 5), 0.0),
        (lines(1, 2, 3), lines(1, 4), 0.5),
        (lines(1, 2, 3), lines(3, 2), 1.0),
        (lines(1, 2, 3), "short\n" * 50 + lines(9), 0.0),
        (lines(1, 2, 3), "   " + lines(1).replace(" ", "  "), 1.0),
        (lines(1, 2, 3), lines(2, 1).replace(" ", "\n"), 1.0),
        ("short\nlines\n", "short lines\n", 1.0),
        ("short\nlines\n", "other lines\n", 0.0),
    ],
    ids=("none", "half", "all", "short ones do not count", "other spaces", "wrapped otherwise", "short and the same", "short and other"),
)
def test_shared_share(calibration, evaluation, share):
    assert shared_share(calibration, evaluation) == pytest.approx(share, abs=0.02)


@given(st.text(min_size=1), st.text(min_size=1))
def test_shared_share_is_a_share_and_whole_for_the_same_text(first, second):
    assert 0.0 <= shared_share(first, second) <= 1.0
    assert shared_share(first, first) == 1.0


def test_overlap_is_refused_and_allowed(tmp_path):
    (tmp_path / "a.txt").write_text(lines(1, 2, 3))
    (tmp_path / "b.txt").write_text(lines(3, 4, 5))
    named = {"calibration": str(tmp_path / "a.txt"), "evaluation": str(tmp_path / "b.txt")}
    with pytest.raises(TrimlineError, match="33% of the evaluation text"):
        texts(TextSlice(**named), RunOptions(), tmp_path, Events())
    assert not (tmp_path / "text.json").exists()
    texts(TextSlice(**named, allow_overlap=True), RunOptions(), tmp_path, Events())
    record = read_json(tmp_path / "text.json")
    assert record["overlap"] == pytest.approx(1 / 3)
    assert record["calibration"][0]["characters"] == len(lines(1, 2, 3))
    assert (tmp_path / "evaluation.txt").read_text() == lines(3, 4, 5)


def test_texts_are_compared_pair_by_pair_and_the_worst_is_named(tmp_path):
    for name, numbers in {"a": (1, 2, 3), "b": (11, 12), "c": (21, 22), "d": (31, 32, 11)}.items():
        (tmp_path / f"{name}.txt").write_text(lines(*numbers))
    named = {
        role: [str(tmp_path / f"{name}.txt") for name in names]
        for role, names in {"calibration": "a", "recovery": "ab", "evaluation": "cd"}.items()
    }
    with pytest.raises(TrimlineError, match=r"33% of the evaluation text also stands in the recovery text \(d\.txt; b\.txt\)"):
        texts(TextSlice(**named), RunOptions(), tmp_path, Events())
    out = tmp_path / "out"
    out.mkdir()
    texts(TextSlice(**named, allow_overlap=True), RunOptions(), out, Events())
    record = read_json(out / "text.json")
    assert record["overlap"] == pytest.approx(1 / 3)
    assert [(pair["role"], pair["seen"], pair["evaluation"]) for pair in record["pairs"]] == [
        ("calibration", "a.txt", "c.txt"),
        ("calibration", "a.txt", "d.txt"),
        *[("recovery", seen, judge) for seen in ("a.txt", "b.txt") for judge in ("c.txt", "d.txt")],
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration.txt", "evaluation-2.txt", "evaluation.txt", "recovery-2.txt", "recovery.txt", "text.json",
    ]  # fmt: skip
    assert [text.name for text in texts_of(out, "recovery")] == ["a.txt", "b.txt"]
    assert texts_of(out, "evaluation")[1].text == lines(31, 32, 11)


def test_one_text_is_written_as_one_and_several_as_a_list():
    one = TextSlice.model_validate({"calibration": "a.txt", "evaluation": {"source": "b.txt"}})
    assert one.model_dump(exclude_defaults=True) == {"calibration": {"source": "a.txt"}, "evaluation": {"source": "b.txt"}}
    several = TextSlice.model_validate({"calibration": ["a.txt", {"source": "b.txt", "share": 3}]})
    plain = several.model_dump(mode="json", exclude_defaults=True)
    assert plain == {"calibration": [{"source": "a.txt"}, {"source": "b.txt", "share": 3.0}]}
    assert TextSlice.model_validate(plain) == several
    with pytest.raises(ValidationError, match="it has no share"):
        TextSlice.model_validate({"evaluation": [{"source": "a.txt", "share": 2}, "b.txt"]})
    with pytest.raises(ValidationError):
        TextSlice.model_validate({"calibration": []})
