"""The gate of an ONNX export against what stands beside the graph, damaged in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.recipe import ExportSlice
from pipeline.common.errors import GateError
from pipeline.common.files import read_json
from tests.exporters.models import stock
from tests.mutants.exports import damaged, edit_json, exported, gated

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
RECIPE = ExportSlice(lowering="fused", logits="all")
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
TEMPLATE = "{% for message in messages %}{{ bos_token }}{{ message.content }}{% endfor %}"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = stock("llama", tmp_path_factory.mktemp("genai"))
    settings = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 2} | SAMPLING
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("genai-export") / "out", RECIPE)


def set_model(**values: Any) -> Damage:
    return lambda folder: edit_json(folder, "genai_config.json", lambda config: config["model"].update(values))


def set_decoder(**values: Any) -> Damage:
    return lambda folder: edit_json(folder, "genai_config.json", lambda config: config["model"]["decoder"].update(values))


def set_search(**values: Any) -> Damage:
    return lambda folder: edit_json(folder, "genai_config.json", lambda config: config["search"].update(values))


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def no_end(folder: Path) -> None:
    edit_json(folder, "genai_config.json", lambda config: config["model"].pop("eos_token_id"))


def not_sampled(folder: Path) -> None:
    edit_json(folder, "genai_config.json", lambda config: config["search"].pop("top_k"))


def swapped_ids(folder: Path) -> None:
    def swap(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]

    edit_json(folder, "tokenizer.json", swap)


def other_end(folder: Path) -> None:
    edit_json(folder, "generation_config.json", lambda settings: settings.update(eos_token_id=[2]))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE + " ", encoding="utf-8")


MUTANTS: dict[str, tuple[Damage, str]] = {
    "another end of text": (set_model(eos_token_id=[2, 8]), r"model.eos_token_id = \[2, 8\], and the checkpoint \[2, 7\]"),
    "one end of text of two": (set_model(eos_token_id=2), r"model.eos_token_id = \[2\], and the checkpoint \[2, 7\]"),
    "no end of text": (no_end, r"model.eos_token_id = \[\], and the checkpoint \[2, 7\]"),
    "another start of text": (set_model(bos_token_id=3), "model.bos_token_id = 3, and the checkpoint 1"),
    "a context of 4096": (set_model(context_length=4096), "model.context_length = 4096, and the checkpoint 256"),
    "a context of 64": (set_model(context_length=64), "model.context_length = 64, and the checkpoint 256"),
    "a longest text of 64": (set_search(max_length=64), "search.max_length = 64, and the checkpoint 256"),
    "another temperature": (set_search(temperature=0.6), r"search.temperature = 0.6, and the checkpoint 0.7"),
    "no top_k": (not_sampled, "search.top_k = None, and the checkpoint 20"),
    "sampled unasked": (set_search(do_sample=True), "search.do_sample = True, and the checkpoint False"),
    "more KV heads": (set_decoder(num_key_value_heads=4), "decoder.num_key_value_heads = 4, and the checkpoint 2"),
    "fewer heads": (set_decoder(num_attention_heads=2), "decoder.num_attention_heads = 2, and the checkpoint 4"),
    "a longer head": (set_decoder(head_size=32), "decoder.head_size = 32, and the checkpoint 16"),
    "a larger vocabulary": (set_model(vocab_size=129), "model.vocab_size = 129, and the checkpoint 128"),
    "no genai_config.json": (without("genai_config.json"), "has no genai_config.json"),
    "no generation_config.json": (without("generation_config.json"), "has a generation_config.json and .* has none"),
    "another generation_config.json": (
        other_end,
        r"generation_config.json says other things than .*: eos_token_id is \[2\] and not \[2, 7\]",
    ),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer, and the checkpoint has one"),
    "two ids swapped": (swapped_ids, "is not the source's"),
    "no chat template": (without("chat_template.jinja"), "has another chat template"),
    "another chat template": (other_template, "has another chat template"),
    "the end of text as padding": (set_model(pad_token_id=2), "prompts that end with .* does not compute what"),
    "token 0 as padding": (set_model(pad_token_id=0), "prompts that end with .* does not compute what"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_stands_beside_the_graph_is_compared_with_the_checkpoint(name: str, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    damage, said = MUTANTS[name]
    with pytest.raises(GateError, match=said):
        gated(checkpoint, damaged(folder, tmp_path / "mutant", damage), RECIPE)


def test_an_undamaged_folder_passes_again(checkpoint: Path, folder: Path) -> None:
    record = gated(checkpoint, folder, RECIPE)
    assert record["metadata"] == {"settings": 16, "tokens": 104, "ends": [2, 7]}
    assert record["genai"]["passed"]
    assert read_json(folder / "genai_config.json")["model"]["pad_token_id"] == -1
