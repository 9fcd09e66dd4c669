"""Models and texts that are damaged, missing, foreign or dangerous: the thing is named, nothing is half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoints.checkpoint import INDEX
from pipeline.common.files import read_json
from tests.end_to_end.scenario import (
    assert_nothing_half_written,
    assert_refused,
    changed,
    prose,
    recipe,
    tiny_inputs,
    trimline,
    written,
)
from tests.tiny import tiny_model

Damage = Callable[[Path], object]


@pytest.fixture
def values(inputs) -> dict[str, Any]:
    return recipe("cfsp-least-squares", inputs)


def check_refused(values: dict[str, Any], folder: Path, *words: str) -> None:
    path = written(values, folder)
    assert_refused(trimline("run", path, "-o", folder / "out", "--threads", 1), *words)
    assert_nothing_half_written(folder / "out")


def set_config(**values: Any) -> Damage:
    def damage(model: Path) -> None:
        config = read_json(model / "config.json")
        config |= values
        (model / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))

    return damage


def set_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    def damage(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        replaced = change(tensors.pop(name))
        if replaced is not None:
            tensors[name] = replaced
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return damage


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[7] = value
        return tensor

    return change


def keep_bytes(share: float) -> Damage:
    def damage(model: Path) -> None:
        path = model / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def write(name: str, content: str | bytes) -> Damage:
    return lambda model: (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(*names: str) -> Damage:
    return lambda model: [(model / name).unlink() for name in names]


def pickled(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def index(**weight_map: Any) -> Damage:
    """An index in the place of the single file."""

    def damage(model: Path) -> None:
        write(INDEX, json.dumps({"weight_map": weight_map}))(model)
        (model / "model.safetensors").unlink()

    return damage


def twice(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "a.safetensors")
    save_file({DOWN: tensors[DOWN] + 1}, model / "b.safetensors")
    index(one="a.safetensors", two="b.safetensors")(model)


DOWN = "model.layers.1.mlp.down_proj.weight"
FETCH = "Fetch the checkpoint again"
DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "unknown family": (set_config(model_type="gpt_bigcode"), ("'gpt_bigcode'", "llama", "opt", "docs/add-an-architecture.md")),
    "no family": (set_config(model_type="gone"), ("not supported",)),
    "no config": (remove("config.json"), ("config.json", "does not exist")),
    "broken config": (write("config.json", '{"model_type": '), ("config.json", "not valid JSON")),
    "config a list": (write("config.json", "[]"), ("config.json", "list")),
    "config not text": (write("config.json", b"\xff\xfe\x00"), ("config.json", "not valid JSON")),
    "config deep": (write("config.json", '{"a":' * 100_000), ("config.json", "not valid JSON")),
    "negative size": (set_config(hidden_size=-64), ("hidden_size", "-64")),
    "fractional size": (set_config(intermediate_size=9.5), ("intermediate_size", "9.5")),
    "no size": (set_config(num_attention_heads="gone"), ("num_attention_heads", "None")),
    "heads that do not divide": (set_config(num_key_value_heads=3), ("num_key_value_heads", "3")),
    "a billion blocks": (set_config(num_hidden_layers=10**9), ("num_hidden_layers", "1000000000")),
    "huge size": (set_config(intermediate_size=10**30), ("intermediate_size", "more than any model")),
    "blocks that are none": (set_config(block_configs=[{"attention": {}}]), ("block_configs",)),
    "blocks not a list": (set_config(block_configs=7), ("block_configs",)),
    "more blocks than weights": (set_config(num_hidden_layers=5), ("holds no tensor model.layers.4.",)),
    "other width": (set_config(intermediate_size=80), ("gate_proj.weight", "(96, 64)", "(80, 64)")),
    "other vocabulary": (set_config(vocab_size=90), ("embed_tokens.weight", "(128, 64)", "(90, 64)")),
    "truncated": (keep_bytes(0.6), ("model.safetensors", "truncated or corrupt", FETCH)),
    "header only": (keep_bytes(0.001), ("model.safetensors", "truncated or corrupt", FETCH)),
    "empty file": (keep_bytes(0), ("model.safetensors", "truncated or corrupt", FETCH)),
    "noise": (write("model.safetensors", bytes(range(256)) * 99), ("model.safetensors", "truncated or corrupt")),
    "huge header": (write("model.safetensors", b"\xff" * 8 + b"{}"), ("model.safetensors", "truncated or corrupt")),
    "missing projection": (set_tensor(DOWN, lambda _: None), (f"holds no tensor {DOWN}",)),
    "missing norm": (set_tensor("model.norm.weight", lambda _: None), ("model.norm.weight",)),
    "missing embedding": (set_tensor("model.embed_tokens.weight", lambda _: None), ("model.embed_tokens.weight",)),
    "wrong shape": (set_tensor(DOWN, lambda tensor: tensor[:, :-1].contiguous()), (DOWN, "(64, 95)", "(64, 96)")),
    "wrong norm": (set_tensor("model.norm.weight", lambda tensor: tensor[:-1].contiguous()), ("model.norm.weight", "(63,)", "(64,)")),
    "NaN": (set_tensor(DOWN, with_value(float("nan"))), (DOWN, "NaN")),
    "Inf": (set_tensor("model.norm.weight", with_value(float("-inf"))), ("model.norm.weight", "Inf")),
    "pickle": (pickled, ("pytorch_model.bin", "can run code", "save_pretrained")),
    "no weights": (remove("model.safetensors"), ("holds no safetensors",)),
    "index outside": (index(a="../model/model.safetensors"), ("'../model/model.safetensors'", "not a file in it")),
    "index absolute": (index(a="/etc/passwd"), ("'/etc/passwd'", "not a file in it")),
    "missing shard": (index(a="model-00002-of-00002.safetensors"), ("'model-00002-of-00002.safetensors'",)),
    "index of numbers": (index(a=3), ("no usable weight_map",)),
    "tensor twice": (twice, (DOWN, "stands in both", "b.safetensors")),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ("tokenizer",)),
    "broken tokenizer": (write("tokenizer.json", '{"model": 1}'), ("transformers cannot open",)),
    "tokenizer code": (
        write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["t.T", null]}}'),
        ("tokenizer_config.json", "--trust-remote-code"),
    ),
    "remote code": (
        lambda model: (write("evil.py", "raise SystemExit(7)")(model), set_config(auto_map={"AutoModelForCausalLM": "evil.E"})(model)),
        ("config.json", "evil.E", "--trust-remote-code"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused(values, inputs, tmp_path, name):
    damage, words = DAMAGES[name]
    model = shutil.copytree(inputs / "model", tmp_path / "model")
    damage(model)
    check_refused(changed(values, "model", to=str(model)), tmp_path, *words)


@pytest.mark.parametrize("name", ["config deep", "truncated", "no weights", "unknown family", "huge size"])
@pytest.mark.parametrize("verb", ["evaluate", "export", "inspect"])
def test_every_verb_refuses_a_damaged_model(inputs, tmp_path, name, verb):
    damage, words = DAMAGES[name]
    model = shutil.copytree(inputs / "model", tmp_path / "model")
    damage(model)
    output = ("-o", tmp_path / "out") if verb == "export" else ()
    assert_refused(trimline(verb, model, *output), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_modelling_file_that_was_changed_is_named(inputs, tmp_path):
    from pipeline.architecture.profile import Profile
    from tests.pipeline.rebuild.cases import anything, plan_for, rebuilt

    folder = rebuilt(tmp_path, inputs / "model", plan_for(inputs / "model", anything), Profile.FREE)
    code = next(folder.glob("*.py"))
    code.write_text(code.read_text() + "\n# one more line\n")
    assert_refused(trimline("evaluate", folder, "--windows", 1, "--window", 8), code.name, "not the file", "--trust-remote-code")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", ("'nowhere'", "Give 'default'")),
        ("./nowhere", ("'./nowhere'",)),
        ("model.gguf", ("'model.gguf'",)),
        ("broken.gguf", ("broken.gguf", "GGUF")),
        ("weights.safetensors", ("weights.safetensors", "neither")),
    ],
)
def test_a_model_that_is_not_there(values, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "weights.safetensors").write_bytes(b"")
    check_refused(changed(values, "model", to=name), tmp_path, *words)


def test_positions_and_vocabulary_bound_the_windows(tmp_path):
    inputs = tiny_inputs(tmp_path, "opt", max_position_embeddings=64)
    values = recipe("opt-portable", inputs)
    check_refused(changed(values, "prune", "calibration", "window", to=65), tmp_path, "65 tokens", "64 learned positions")
    check_refused(changed(values, "evaluate", "window", to=65), tmp_path, "65 tokens", "64 learned positions")
    tiny_model("llama", tmp_path / "model2", vocab_size=80)
    check_refused(changed(recipe("cfsp-least-squares", inputs), "model", to=str(tmp_path / "model2")), tmp_path, "tokenizer", "80 rows")


def test_overflowing_activations_are_said(tmp_path):
    inputs = tiny_inputs(tmp_path)
    set_tensor("model.layers.0.mlp.up_proj.weight", lambda tensor: tensor * 1e6)(inputs / "model")
    path = written(recipe("cfsp-least-squares", inputs), tmp_path)
    assert_refused(
        trimline("prune", path, "-o", tmp_path / "plan", "--dtype", "float16"), "mlp.up_proj.weight", "beyond float16", "--dtype"
    )
    assert not (tmp_path / "plan").exists()


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


TEXTS: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty": ("a.txt", b" \n\n ", ("calibration", "empty")),
    "not UTF-8": ("a.txt", "Zoë said so. ".encode("latin-1") * 900, ("a.txt", "UTF-8")),
    "other kind": ("a.docx", b"text", ("a.docx", ".jsonl")),
    "no column": ("a.jsonl", jsonl([{"text": "words"}, {"body": "words"}]), ("Line 2 of a.jsonl", "no 'text'", "'body'")),
    "rows that are no objects": ("a.jsonl", jsonl(["words"]), ("Line 1 of a.jsonl", "no object but a str")),
    "numbers": ("a.jsonl", jsonl([{"text": 3}]), ("Line 1 of a.jsonl", "'text'", "int")),
    "only null": ("a.jsonl", jsonl([{"text": None}]), ("calibration", "empty")),
    "broken json": ("a.jsonl", b'{"text": "b"}\n\n{"text": "a"\n', ("Line 3 of a.jsonl", "not JSON")),
    "line of other bytes": ("a.jsonl", b'{"text": "b"}\n{"text": "\xff"}\n', ("Line 2 of a.jsonl", "not UTF-8", "byte 11")),
    "deep json": ("a.jsonl", b'{"text":' * 100_000, ("Line 1 of a.jsonl", "not JSON")),
    "half a pair": ("a.jsonl", b'{"text": "words \\ud83d words"}\n', ("Line 1 of a.jsonl", "surrogate")),
    "broken parquet": ("a.parquet", b"PAR1" + bytes(99), ("a.parquet", "cannot be read")),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_cannot_be_read(values, tmp_path, name):
    file, content, words = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    check_refused(changed(values, "text", "calibration", to=str(tmp_path / file)), tmp_path, *words)


@pytest.mark.parametrize("name", ["none.txt", "/nowhere/none.jsonl", "./none"])
def test_a_text_that_is_not_there(values, tmp_path, name):
    check_refused(changed(values, "text", "evaluation", to=name), tmp_path, name, "no text file")


def test_parquet_without_the_column(values, tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["words"], "n": np.arange(1)}), path)
    check_refused(changed(values, "text", "calibration", to=str(path)), tmp_path, "a.parquet", "'text'")
    check_refused(changed(values, "text", "calibration", to={"source": str(path), "column": "n"}), tmp_path, "'n'", "int")


def test_a_split_that_the_default_text_lacks(values, tmp_path):
    check_refused(changed(values, "text", "calibration", to={"split": "train"}), tmp_path, "'train'", "calibration, evaluation")


def test_the_same_text_twice(values, inputs, tmp_path):
    same = changed(values, "text", "evaluation", to=str(inputs / "calibration.txt"))
    check_refused(same, tmp_path, "100%", "text.allow_overlap: true")
    wrapped = tmp_path / "wrapped.txt"
    sentences = prose(1, 40).replace("\n", ". ")
    wrapped.write_text(sentences.replace(" ", "\n"))
    whole = tmp_path / "whole.txt"
    whole.write_text(sentences)
    check_refused(changed(values, "text", to={"calibration": str(whole), "evaluation": str(wrapped)}), tmp_path, "allow_overlap")


@pytest.mark.parametrize("verb", ["run", "prune"])
@pytest.mark.parametrize("offline", ["unreachable", "offline"])
def test_without_a_network_a_hub_name_fails_at_once(values, tmp_path, monkeypatch, verb, offline):
    from huggingface_hub import constants

    endpoint = "http://127.0.0.1:9"  # nothing listens there
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline == "offline")
    for change, name in ((("model",), "some-org/some-model"), (("text", "calibration"), "some-org/some-text")):
        path = written(changed(values, *change, to=name), tmp_path)
        assert_refused(trimline(verb, path, "-o", tmp_path / "out"), name, "network")
        assert_nothing_half_written(tmp_path / "out")
