"""What comes along with weights: everything but what a list leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Event, Events
from pipeline.recover.folder import RECOVERED
from pipeline.sources import companions as module
from pipeline.sources.companions import companions, copy_companions, not_fetched, why_left_out
from pipeline.sources.model import POINTER

TAKEN = [
    "LICENSE", "README.md", "USE_POLICY.md", "added_tokens.json", "additional_chat_templates/rag.jinja", "assets/Logo.PNG", "bpe.codes",
    "chat_template.jinja", "chat_template.json", "generation_config.json", "image/deep/down.txt", "merges.txt", "preprocessor_config.json",
    "processor_config.json", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "tekken.json", "tokenizer.json",
    "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json", "unheard_of.cfg", "vocab.json", "vocab.txt",
]  # fmt: skip
LEFT = {
    "weights": ["model.safetensors", "model.safetensors.index.json", "consolidated.safetensors", "adapter_model.safetensors"],
    "config": ["config.json"],
    "pickles": ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "training_args.bin", "Model.PT"],
    "another program": ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model-q4.gguf", "model.onnx", "model.onnx.data"],
    "code": ["modeling_x.py", "run.sh"],
    "sizes": ["params.json"],
    "adapters": ["adapter_config.json"],
    "quantised": ["quantize_config.json", "hf_quant_config.json"],
    "training": ["trainer_state.json", "optimizer.json"],
    "records": ["SHA256SUMS", "artefact.json", "run.json", "plan.json", "gate.json", POINTER, RECOVERED],
    "hidden": [".gitattributes", ".git/config", ".cache/huggingface/x"],
    "": ["onnx/model.onnx", "onnx/tokenizer.json", "checkpoint-5/config.json", "checkpoint-5/vocab.txt", "original/consolidated.00.pth", "original/tokenizer.model"],
}  # fmt: skip


def folder_with(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_everything_comes_along_but_what_is_left_out_for_a_reason(tmp_path: Path) -> None:
    source, out = folder_with(tmp_path / "source", [*TAKEN, *(name for names in LEFT.values() for name in names)]), tmp_path / "out"
    out.mkdir()
    said: list[Event] = []
    copy_companions(source, out, Events(said.append))
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == sorted(TAKEN)
    assert (out / "additional_chat_templates" / "rag.jinja").read_bytes() == b"additional_chat_templates/rag.jinja"
    assert not said
    for word, names in LEFT.items():
        assert all(word in why_left_out(name.split("/")[0] if word == "hidden" else name) for name in names), word


def test_huge_files_are_left_behind_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_with(tmp_path / "source", ["a.txt", "b.txt", "demo.mp4"])
    (source / "demo.mp4").write_bytes(b"x" * 100)
    monkeypatch.setattr(module, "LARGEST", 99)
    monkeypatch.setattr(module, "ALTOGETHER", 9)
    said: list[Event] = []
    (tmp_path / "out").mkdir()
    copy_companions(source, tmp_path / "out", Events(said.append))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]
    assert "b.txt, demo.mp4" in said[0].text


def test_names_that_no_list_can_hold_are_left_behind(tmp_path: Path) -> None:
    assert companions(folder_with(tmp_path, ["a\nb.txt", "c\\d.txt", "e.txt"])).taken == ("e.txt",)


def test_a_link_in_a_folder_inside_takes_nothing_along_that_was_elsewhere(tmp_path: Path) -> None:
    secret = folder_with(tmp_path, ["secret.txt"]) / "secret.txt"
    source = folder_with(tmp_path / "source", ["additional_chat_templates/a.jinja"])
    (source / "additional_chat_templates" / "b.jinja").symlink_to(secret)
    with pytest.raises(TrimlineError, match="leads out of the folder"):
        companions(source)


def test_the_hub_is_not_asked_for_what_nobody_needs() -> None:
    patterns = not_fetched({"model.safetensors": 10**10, "film[1].mp4": 10**9, "small.png": 9, "unknown": None})
    assert {"*.bin", "*/*.bin", "film[[]1].mp4"} <= set(patterns)
    assert not {"*.safetensors", "config.json", "adapter_config.json", "model.safetensors", "small.png"} & set(patterns)
