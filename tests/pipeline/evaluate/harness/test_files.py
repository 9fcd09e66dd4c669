"""Task files: what is read, what is refused because it would run code, and what a key depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.common.errors import TrimlineError
from pipeline.evaluate.harness.files import identify, local_files, named_tasks
from pipeline.evaluate.recipe import LmEvalSlice

GOOD: dict[str, Any] = {
    "task": "own",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "own.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
}


def with_data(**kwargs: Any) -> dict[str, Any]:
    """The good task with other arguments of its data."""
    return GOOD | {"dataset_kwargs": GOOD["dataset_kwargs"] | kwargs}


def task(folder: Path, config: dict[str, Any] | str = "", name: str = "own.yaml") -> Path:
    """A task file beside one line of data."""
    text = config if isinstance(config, str) and config else yaml.safe_dump(config or GOOD)
    (folder / name).write_text(text, encoding="utf-8")
    (folder / "own.jsonl").write_text(json.dumps({"text": "One line."}) + "\n", encoding="utf-8")
    return folder / name


def read(path: Path, **chosen: Any) -> list[Any]:
    return local_files(LmEvalSlice(tasks=(str(path),), **chosen))


def test_data_lies_where_the_task_file_lies(tmp_path, monkeypatch):
    path = task(tmp_path)
    monkeypatch.chdir("/")
    (found,) = read(path)
    assert found.data == {"test": tmp_path / "own.jsonl"}
    assert set(found.read) == {path, tmp_path / "own.jsonl"}


def test_a_folder_is_its_tasks_by_name_and_not_what_they_include(tmp_path):
    task(tmp_path, {key: value for key, value in GOOD.items() if key != "task"}, "shared.yaml")
    task(tmp_path, {"include": "shared.yaml", "task": "b"}, "b.yaml")
    task(tmp_path, {"include": ["shared.yaml"], "task": "a", "description": "mine"}, "a.yaml")
    found = read(tmp_path)
    assert [each.config["task"] for each in found] == ["a", "b"]
    assert found[0].config["description"] == "mine"
    assert found[0].config["doc_to_target"] == "{{text}}"
    assert tmp_path / "shared.yaml" in found[1].read


def test_names_and_paths_are_told_apart(tmp_path):
    recipe = LmEvalSlice(tasks=("hellaswag", str(task(tmp_path)), "arc_easy"))
    assert named_tasks(recipe) == ["hellaswag", "arc_easy"]
    assert [each.config["task"] for each in local_files(recipe)] == ["own"]


def test_the_key_depends_on_what_stands_in_the_files_and_not_on_where_they_lie(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        task(folder)
    keys = [identify(LmEvalSlice(tasks=(str(folder / "own.yaml"),))) for folder in (first, second)]
    assert keys[0] == keys[1]
    (second / "own.jsonl").write_text('{"text": "Another line."}\n')
    assert identify(LmEvalSlice(tasks=(str(second / "own.yaml"),))) != keys[0]


FUNCTION = yaml.safe_dump(GOOD) + "process_docs: !function own.process\n"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FUNCTION, ("!function", "runs Python code", "--allow-task-code")),
        (GOOD | {"class": "own.Task"}, ("'class'", "--allow-task-code")),
        (GOOD | {"process_results": "own.f"}, ("'process_results'", "--allow-task-code")),
        (GOOD | {"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, ("hf_evaluate", "--allow-task-code")),
        (GOOD | {"unsafe_code": True}, ("unsafe_code", "sandbox")),
        (with_data(trust_remote_code=True), ("trust_remote_code", "Take that key out")),
        (GOOD | {"dataset_path": "pandas"}, ("'pandas'", "json, csv, parquet")),
        (GOOD | {"dataset_path": "."}, ("'.'", "hub data set")),
        (GOOD | {"dataset_kwargs": {}}, ("does not say where its data is",)),
        (with_data(data_files={"test": "https://example.org/a.jsonl"}), ("which is not there",)),
        (with_data(data_files={"test": 3}), ("3 as data of a split",)),
        (GOOD | {"doc_to_txt": ""}, ("'doc_to_txt'", "Did you mean 'doc_to_text'?")),
        ({"group": "g", "task": ["own"]}, ("names no task",)),
        (GOOD | {"include": "own.yaml"}, ("includes itself",)),
        ("task: [", ("not valid YAML",)),
        ("a: &x [1]\ntask: *x\n", ("aliases",)),
        ("- 1\n", ("holds no task",)),
    ],
)
def test_what_is_refused(tmp_path, config, words):
    with pytest.raises(TrimlineError) as raised:
        read(task(tmp_path, config))
    assert all(word in str(raised.value) for word in words), raised.value


def test_code_in_an_included_file_is_found(tmp_path):
    task(tmp_path, FUNCTION, "shared.txt")
    with pytest.raises(TrimlineError, match=r"shared\.txt uses !function"):
        read(task(tmp_path, GOOD | {"include": "shared.txt"}))


def test_code_that_is_allowed_counts_towards_the_key(tmp_path):
    path = task(tmp_path, FUNCTION)
    (tmp_path / "own.py").write_text("def process(docs):\n    return docs\n")
    (found,) = read(path, allow_task_code=True)
    assert tmp_path / "own.py" in found.read
    for refused in (GOOD | {"unsafe_code": True}, with_data(trust_remote_code=True)):
        with pytest.raises(TrimlineError):
            read(task(tmp_path, refused), allow_task_code=True)


@pytest.mark.parametrize("name", ["none.yaml", "./none", "~/none.yaml", "a/b"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(TrimlineError, match="There is no task file"):
        read(Path(name)) if name != "./none" else local_files(LmEvalSlice(tasks=(name,)))


def test_a_folder_without_tasks_and_a_name_twice(tmp_path):
    with pytest.raises(TrimlineError, match="holds no task file"):
        read(tmp_path)
    path = task(tmp_path)
    with pytest.raises(TrimlineError, match="The task 'own' is there twice"):
        local_files(LmEvalSlice(tasks=(str(path), str(path))))
