"""The tasks that ship: the script makes the same files again, questions are sound, and lm-eval opens them by our names."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from benchmarks.studies.tasks.make import from_lists, lines, questions, sections
from pipeline.common.events import Events
from pipeline.evaluate.harness.files import local_files, named_tasks
from pipeline.evaluate.harness.scores import RESULT
from pipeline.evaluate.harness.shipped import OWN, SHIPPED, shipped_files
from pipeline.evaluate.harness.stage import examine
from pipeline.evaluate.recipe import LmEvalSlice
from tests.exporters.models import OPTIONS
from tests.tiny import tiny_model


@pytest.mark.parametrize("name", OWN)
def test_the_script_makes_the_files_again(name):
    assert (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8") == lines(name)


@pytest.mark.parametrize("name", OWN)
def test_questions_have_four_answers_of_which_one_is_right(name):
    found = questions(name)
    assert len(found) == 200
    assert len({item["question"] for item in found}) == 200
    for item in found:
        assert len(set(item["choices"])) == 4
        assert all(choice == choice.strip() != "" for choice in item["choices"])
    places = Counter(item["answer"] for item in found)
    assert min(places[place] for place in range(4)) >= 30, "an answer's place says which it is"


def test_wrong_answers_are_of_the_same_section_and_not_right():
    text = (
        "# The {} says (a sound)\ndog = woof; cat = meow; cow = moo\nduck = quack; other dog = woof\n# Too {}\nfew = answers; here = two\n"
    )
    found = sections(text)
    assert [template for template, _ in found] == ["The {} says", "Too {}"]
    made = list(from_lists(found, random.Random(0)))
    assert [item["question"] for item in made] == [f"The {key} says" for key in ("dog", "cat", "cow", "duck", "other dog")]
    assert all(sorted(item["choices"]) == ["meow", "moo", "quack", "woof"] for item in made)
    assert [item["choices"][item["answer"]] for item in made] == ["woof", "meow", "moo", "quack", "woof"]


def test_arithmetic_is_right():
    for item in questions("arithmetic"):
        asked, answer = item["question"], int(item["choices"][item["answer"]])
        parts = asked.removesuffix("=").replace("×", "*").split()
        if asked.endswith("="):
            a, b = int(parts[0]), int(parts[2])
            assert answer == {"+": a + b, "-": a - b, "*": a * b}[parts[1]]
        elif asked.endswith(","):
            numbers = [int(part.rstrip(",")) for part in asked.split()]
            assert {b - a for a, b in zip(numbers, [*numbers[1:], answer], strict=True)} == {numbers[1] - numbers[0]}
        else:
            assert answer == int(asked.split()[3]) + 1


def test_our_names_stand_for_our_files_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "trimline").mkdir()
    monkeypatch.chdir(tmp_path)
    every = LmEvalSlice(tasks=("trimline", "arc_easy"))
    assert [task.config["task"] for task in local_files(every)] == [f"trimline_{name}" for name in OWN]
    assert named_tasks(every) == ["arc_easy"]
    assert shipped_files("trimline_german") == [SHIPPED / "german.yaml"]
    assert shipped_files("german") == []


def test_lm_eval_asks_them_and_the_record_says_what_guessing_gives(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=1)
    examine(model, LmEvalSlice(tasks=("trimline",), limit=3, batch=4), OPTIONS, tmp_path, Events())
    rows = json.loads((tmp_path / RESULT).read_text(encoding="utf-8"))["tasks"]
    assert [(row["task"], row["metric"], row["chance"], row["documents"]) for row in rows] == [
        (f"trimline_{name}", "acc", 0.25, 3) for name in OWN
    ]
    assert all(value in (0.0, 1.0) for row in rows for value in row["per_document"])
