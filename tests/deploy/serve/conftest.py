"""A tiny model that is served by a real process, on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[3]
CONTEXT = 4096
TEMPLATE = """{% for message in messages %}{% if message.content == 'refuse' %}{{ raise_exception('not this') }}{% endif %}\
{{ message.role[0] }}:{{ message.content }}
{% endfor %}{% if add_generation_prompt %}a:{% endif %}"""


@dataclass(frozen=True)
class Served:
    """A checkpoint, its export, and where that is served."""

    checkpoint: Path
    url: str
    process: subprocess.Popen[str]

    @property
    def name(self) -> str:
        return "tiny-onnx"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As many tokens as the tokenizer has characters, so that a text says which tokens were chosen.
    folder = tmp_path_factory.mktemp("served") / "tiny"
    tiny_model("llama", folder, num_hidden_layers=2, vocab_size=104, max_position_embeddings=CONTEXT)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Path) -> Path:
    out = tiny_checkpoint.with_name("tiny-onnx")
    out.mkdir()
    export(tiny_checkpoint, ExportSlice(), RunOptions(threads=1), out, Events())
    return out


@contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """URL and process of ``trimline serve``; killed at the end where it still runs."""
    command = [sys.executable, "-m", "trimline.cli", "serve", str(folder), "--port", "0", "--threads", "1", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield _url(process), process
        finally:
            process.kill()


def _url(process: subprocess.Popen[str]) -> str:
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"at (http://\S+)/v1", line):
            return found[1]
    raise AssertionError(f"the server did not start: {''.join(lines)}")


@pytest.fixture(scope="session")
def served(tiny_checkpoint: Path, tiny_onnx: Path) -> Iterator[Served]:
    with serving(tiny_onnx) as (url, process):
        yield Served(tiny_checkpoint, url, process)
