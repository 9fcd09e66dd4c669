"""Chat templates end within their limits, whatever they do, and say what was wrong."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deploy.serve.model import ServedModel
from exporters.text.templates import Templates
from tests.deploy.serve.conftest import TEMPLATE

SECONDS, MOST = 1.0, 10_000
MESSAGES = [{"role": "user", "content": "Say 'é'"}, {"role": "assistant", "content": "é"}]
WRONG = {
    "{% for i in range(10 ** 9) %}x{% endfor %}": "Range too big",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "takes more than 1 s",
    "{{ 'x' * 10 ** 9 }}": "too much memory",
    "{{ 'x' * 10001 }}": "makes more than 10,000 characters",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}": "RecursionError",
    "{{ messages + 1 }}": "TypeError",
    "{% for %}": "refuses this conversation",
    "{{ raise_exception('not this') }}": "refuses this conversation: not this",
}


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    made = Templates(SECONDS)
    yield made
    made.kill()


@pytest.mark.parametrize(("template", "why"), WRONG.items())
def test_a_template_that_cannot_be_rendered_says_why_and_the_next_one_is(templates: Templates, template: str, why: str) -> None:
    templates.render("{{ messages[0].content }}", {}, MESSAGES, MOST)  # the process is there: what follows is the template's time
    began = time.monotonic()
    with pytest.raises(ValueError, match="chat template") as error:
        templates.render(template, {}, MESSAGES, MOST)
    assert time.monotonic() - began < 10 * SECONDS
    assert why in str(error.value)
    assert templates.render("{{ messages[0].content }}{{ eos_token }}", {"eos_token": "</s>"}, MESSAGES, MOST) == "Say 'é'</s>"


def test_a_conversation_is_written_as_transformers_writes_it(tiny_onnx: Path) -> None:
    model, theirs = ServedModel(tiny_onnx), AutoTokenizer.from_pretrained(tiny_onnx)
    assert theirs.chat_template == TEMPLATE
    assert model.chat(MESSAGES) == theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert model.check_template() is None
    model.tokenizer.chat_template = "{{ nothing.at.all }}"
    assert "'nothing' is undefined" in str(model.check_template())
    model.tokenizer.chat_template = None
    assert model.check_template() is None
    model.templates.kill()


def test_tokens_are_those_of_transformers_whatever_the_file_says_of_truncation_and_padding(tiny_onnx: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_onnx, tmp_path / "onnx")
    stored = Tokenizer.from_file(str(tiny_onnx / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=9)
    stored.save(str(tmp_path / "onnx" / "tokenizer.json"))
    model, theirs = ServedModel(tmp_path / "onnx"), AutoTokenizer.from_pretrained(tmp_path / "onnx")
    for text in ("a", "Eight letters and more"):
        assert model.encode(text) == theirs(text)["input_ids"]


def test_other_threads_run_while_a_long_text_is_made_into_tokens(tiny_onnx: Path) -> None:
    model, text = ServedModel(tiny_onnx), "word " * 100_000
    longest, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal longest
        while not over.is_set():
            before = time.monotonic()
            time.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    watch = threading.Thread(target=look)
    watch.start()
    began = time.monotonic()
    model.encode(text)
    took = time.monotonic() - began
    over.set()
    watch.join()
    assert longest < max(0.5 * took, 0.25)
