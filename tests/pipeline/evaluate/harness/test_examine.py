"""The harness on a checkpoint: its figures against logits, byte for byte again, and one sentence for what is wrong."""

from __future__ import annotations

import json
import math
import socket
import sys

import pytest
import torch

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.harness import tasks as opening
from pipeline.evaluate.harness.scores import RESULT
from pipeline.evaluate.harness.stage import examine
from pipeline.evaluate.harness.tasks import check_tasks, harness_version
from pipeline.evaluate.recipe import LmEvalSlice
from pipeline.live.loading import load_model, load_tokenizer
from tests.exporters.models import OPTIONS, uneven
from tests.pipeline.evaluate.harness.test_files import FUNCTION, GOOD, task
from tests.tiny import tiny_model

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
DOCUMENTS = [
    {"word": "hot", "choices": ["cold", "warm", "fire"], "answer": 0},
    {"word": "up", "choices": ["high", "down", "top"], "answer": 1},
    {"word": "day", "choices": ["noon", "night", "week"], "answer": 1},
    {"word": "old", "choices": ["grey", "age", "young"], "answer": 2},
]
CHOICE = {
    "task": "choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "choice.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Not {{word}} but",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
TEXTS = ["A first line of text.", "And one more, a little longer than the first."]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with two tasks: one of choices, one of perplexity."""
    folder = tmp_path_factory.mktemp("tasks")
    task(folder, CHOICE, "choice.yaml")
    task(folder, GOOD)
    (folder / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    (folder / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Blocks of uneven width: only the modelling file that ships in the folder opens it."""
    return uneven("llama", tmp_path_factory.mktemp("model"))


def examined(model, out, **chosen):
    out.mkdir()
    examine(model, LmEvalSlice(**chosen), OPTIONS, out, Events())
    return json.loads((out / RESULT).read_text())


def log_likelihood(model, tokenizer, context: str, text: str) -> float:
    """Σ log p(token | all before), one token at a time; an empty context is the token that starts a text."""
    before = tokenizer(context)["input_ids"] if context else [tokenizer.bos_token_id]
    total = 0.0
    for token in tokenizer(text)["input_ids"]:
        with torch.inference_mode():
            total += model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token].item()
        before = [*before, token]
    return total


def test_figures_are_those_of_the_logits(model, own, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    found = {(row["task"], row["metric"]): row for row in examined(model, tmp_path / "out", tasks=(str(own),), batch=3)["tasks"]}
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    best = [
        max(range(3), key=lambda i: log_likelihood(loaded, tokenizer, f"Not {row['word']} but", f" {row['choices'][i]}"))
        for row in DOCUMENTS
    ]
    right = [float(i == row["answer"]) for i, row in zip(best, DOCUMENTS, strict=True)]
    choice = found["choice", "acc"]
    assert choice["per_document"] == right
    assert choice["value"] == sum(right) / 4
    assert choice["higher_is_better"] is True
    logs = [log_likelihood(loaded, tokenizer, "", text) for text in TEXTS]
    byte = found["own", "byte_perplexity"]
    assert [log for log, _ in byte["per_document"]] == pytest.approx(logs, abs=1e-3)
    assert byte["value"] == pytest.approx(math.exp(-sum(logs) / sum(map(len, TEXTS))), rel=1e-5)
    assert byte["standard_error"] > 0
    assert (choice["documents"], byte["documents"]) == (4, 2)


def _no_network(*_: object) -> None:
    raise AssertionError("something wanted the network")


def test_the_same_bytes_again_and_fewer_documents_and_examples(model, own, tmp_path):
    chosen = {"tasks": (str(own / "choice.yaml"),), "limit": 3}
    examined(model, tmp_path / "first", **chosen)
    examined(model, tmp_path / "second", **chosen)
    assert (tmp_path / "first" / RESULT).read_bytes() == (tmp_path / "second" / RESULT).read_bytes()
    (row,) = examined(model, tmp_path / "third", **chosen, shots=1)["tasks"]
    assert (row["documents"], row["shots"]) == (3, 1)


def test_the_cache_that_unpickles_is_not_imported(model, own, tmp_path):
    examined(model, tmp_path / "out", tasks=(str(own),), limit=1)
    assert "sqlitedict" not in sys.modules  # .ci/accepted-advisories.txt rests on it


def test_code_runs_only_where_it_is_allowed(model, tmp_path):
    marker = tmp_path / "it ran"
    path = task(tmp_path, FUNCTION)
    (tmp_path / "own.py").write_text(f"def process(docs):\n    open({str(marker)!r}, 'w').close()\n    return docs\n")
    with pytest.raises(TrimlineError, match="runs Python code"):
        examined(model, tmp_path / "refused", tasks=(str(path),))
    assert not marker.exists()
    assert examined(model, tmp_path / "out", tasks=(str(path),), allow_task_code=True)["tasks"]
    assert marker.exists()


def test_templates_reach_nothing_but_their_document(model, tmp_path):
    path = task(tmp_path, GOOD | {"doc_to_target": "{{ ''.__class__.__mro__ }}"})
    with pytest.raises(TrimlineError, match="cannot open the task .*unsafe"):
        examined(model, tmp_path / "out", tasks=(str(path),))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GOOD | {"metric_list": [{"metric": "no_such"}]}, ("no metric 'no_such'",)),
        (GOOD | {"metric_list": [{"metric": "acc", "aggregation": "no_such"}]}, ("no aggregation 'no_such'",)),
        (GOOD | {"test_split": "train"}, ("cannot", "own")),
        (GOOD | {"doc_to_target": "{{no_such}}"}, ("cannot open", "no_such")),
        (GOOD | {"output_type": "no_such"}, ("cannot open", "no_such")),
    ],
)
def test_a_task_that_is_wrong_is_one_sentence(model, tmp_path, config, words):
    with pytest.raises(TrimlineError) as raised:
        examined(model, tmp_path / "out", tasks=(str(task(tmp_path, config)),))
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_damaged_data_is_one_sentence(model, tmp_path):
    path = task(tmp_path)
    (tmp_path / "own.jsonl").write_text("{")
    with pytest.raises(TrimlineError, match=r"own\.jsonl cannot be read"):
        examined(model, tmp_path / "out", tasks=(str(path),))


def test_names_need_a_hub(own, monkeypatch):
    from lm_eval.tasks import TaskManager

    own_tasks = TaskManager(include_defaults=False, include_path=str(own))  # in place of thousands, which take a minute to read
    monkeypatch.setattr(opening, "_known", lambda: own_tasks)
    with pytest.raises(TrimlineError, match=r"knows no task 'choic'. Did you mean 'choice'\?"):
        check_tasks(LmEvalSlice(tasks=("choic",)), Events())
    check_tasks(LmEvalSlice(tasks=("choice",)), Events())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrimlineError, match="The data of the task 'choice' is on a hub that cannot be reached"):
        opening.open_tasks(LmEvalSlice(tasks=("choice",)), Events())


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda _: None)
    with pytest.raises(TrimlineError, match=r"not installed. Install the extra: pip install 'trimline\[lm-eval\]'"):
        harness_version()


def test_a_model_that_does_not_fit_is_one_sentence(own, tmp_path):
    from dataclasses import replace

    dense, out = tiny_model("llama", tmp_path / "dense"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrimlineError, match="does not fit into the memory"):
        examine(dense, LmEvalSlice(tasks=(str(own),)), replace(OPTIONS, memory=1000), out, Events())
