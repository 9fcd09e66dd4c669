"""The gate of a GGUF against a writer that puts one thing wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from exporters.gguf import child
from exporters.gguf.files import MODEL
from exporters.gguf.gate import gate_file
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.rebuild.gguf_form import gguf_form
from tests.exporters.models import OPTIONS, stock

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
read: Callable[[Checkpoint, str], torch.Tensor] = Checkpoint.tensor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = stock("llama", tmp_path_factory.mktemp("gguf"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")


@pytest.fixture(autouse=True, scope="module")
def without_renderer() -> Any:
    """Its process takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporters.text.tokens.check_template", lambda *_: None)
        yield


def swapped(self: gguf.GGUFWriter, tokens: list[str], write: Callable[..., None] = gguf.GGUFWriter.add_token_list) -> None:
    write(self, [*tokens[:10], tokens[11], tokens[10], *tokens[12:]])


def one_more(name: str) -> Callable[[gguf.GGUFWriter, int], None]:
    write = getattr(gguf.GGUFWriter, name)
    return lambda self, value: write(self, value + 1)


def nothing(self: gguf.GGUFWriter, value: Any) -> None:
    pass


MUTANTS: dict[str, tuple[str, Callable[..., None], str]] = {
    "two tokens swapped": ("add_token_list", swapped, "for token 1[01], and the checkpoint"),
    "another end of text": ("add_eos_token_id", one_more("add_eos_token_id"), "eos_token_id = 3, and the checkpoint 2"),
    "no end of text": ("add_eos_token_id", nothing, "eos_token_id = None, and the checkpoint 2"),
    "a token before every text": ("add_add_bos_token", one_more("add_add_bos_token"), "add_bos_token = True, and the checkpoint False"),
    "no template": ("add_chat_template", nothing, "chat_template = None, and the checkpoint"),
    "a longer context": ("add_context_length", one_more("add_context_length"), "context_length = 257, and the checkpoint 256"),
    "another base of angles": ("add_rope_freq_base", one_more("add_rope_freq_base"), "rope.freq_base = 10001.0"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_key_is_the_checkpoints(name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, written, said = MUTANTS[name]
    monkeypatch.setattr(gguf.GGUFWriter, method, written)
    with pytest.raises(GateError, match=said):
        export_gguf(checkpoint, GgufSlice(precision="fp32"), OPTIONS, tmp_path, Events())


def negated(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return -read(checkpoint, name) if name.endswith("1.mlp.down_proj.weight") else read(checkpoint, name)


def test_the_reference_is_not_the_writers_own_reader(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that gives other weights would otherwise be compared with itself."""
    monkeypatch.setattr(Checkpoint, "tensor", negated)
    with pytest.raises(GateError, match=r"blk\.1\.ffn_down\.weight is not the checkpoint's"):
        export_gguf(checkpoint, GgufSlice(precision="fp32"), OPTIONS, tmp_path, Events())


def test_beyond_memory_it_is_transformers_offload(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_gguf(checkpoint, GgufSlice(precision="fp32"), OPTIONS, tmp_path, Events())
    monkeypatch.setattr("exporters.gguf.gate.is_mapped", lambda *_: True)
    source = Checkpoint(checkpoint)
    form = gguf_form(source.geometry, source.config)
    gated = gate_file(source, form, "fp32", tmp_path / MODEL, OPTIONS, Events())
    assert gated["tensors"] == 20
    monkeypatch.setattr(Checkpoint, "tensor", negated)
    assert gate_file(source, form, "fp32", tmp_path / MODEL, OPTIONS, Events())["tensors"] == 20
