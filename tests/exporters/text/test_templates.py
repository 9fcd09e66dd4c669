"""A chat template is rendered once before an export carries it along, in a child process with bounds on time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from exporters.text import templates
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.exporters.models import OPTIONS, stock


class Templated:
    """What is read of a tokenizer."""

    special_tokens_map = {"bos_token": "<s>", "additional_special_tokens": ["<a>"]}

    def __init__(self, chat_template: object) -> None:
        self.chat_template = chat_template


GOOD = "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message.content | trim }}\n{% endfor %}"


@pytest.mark.parametrize("chat_template", [None, GOOD, {"tool_use": "{{ broken(", "default": GOOD}, {"tool_use": "{{ broken("}])
def test_what_renders_is_carried_along(chat_template: object) -> None:
    templates.check_template(Templated(chat_template), Path("model"))


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].author.name }}", "has no attribute 'author'"),
        ("{{ raise_exception('only with tools') }}", "only with tools"),
        ("{{ 'a' * 10000000000 }}", "too much memory"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 2 s"),
    ],
)
def test_what_does_not_render_is_refused(chat_template: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "ONCE", 2.0)
    with pytest.raises(TrimlineError, match=f"The chat template of model does not render a plain conversation: .*{why}"):
        templates.check_template(Templated(chat_template), Path("model"))


def test_an_export_refuses_it_before_it_writes(tmp_path: Path) -> None:
    checkpoint = stock("llama", tmp_path)
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] + 1 }}", encoding="utf-8")
    (out := tmp_path / "out").mkdir()
    with pytest.raises(
        TrimlineError, match="does not render a plain conversation: it fails on this conversation .*can only concatenate str"
    ):
        export(checkpoint, ExportSlice(), OPTIONS, out, Events())
    assert not list(out.iterdir())
