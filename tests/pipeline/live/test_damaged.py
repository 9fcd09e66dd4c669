"""Regressions: what the fuzz suite (tests/fuzz) found, each as small as it can be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError, shown
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.common.plain_yaml import read_plain_yaml
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.plan.plan import MOST_LISTED, MOST_UNITS, Plan, Step
from pipeline.plan.selection import Selection
from pipeline.sources.model import checkpoint_folder, identify, source
from pipeline.sources.recipe import ModelSlice
from pipeline.sources.windows import tokenize
from tests.tiny import tiny_model
from trimline.inspect import inspect_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model("llama", tmp_path / "model", num_hidden_layers=2)


@pytest.fixture
def plan(tmp_path: Path, model: Path) -> Path:
    folder = tmp_path / "plan"
    folder.mkdir()
    geometry = Checkpoint(model).geometry
    Plan(geometry.family, Selection.everything(geometry), (Step("by hand", {}, {}, {}),)).write(folder)
    return folder


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"truncation": {"max_length": -1}}),  # tokenizers raises a bare Exception
        ("tokenizer.json", {"normalizer": {"type": "Nothing"}}),
        ("tokenizer_config.json", {"model_max_length": [1]}),  # believed until a text is split
        ("config.json", {"pad_token_id": "a"}),  # huggingface_hub's dataclasses have errors of their own
    ],
)
def test_errors_of_every_kind_inside_transformers_become_sentences(model, name, values):
    edit(model / name, **values)
    with pytest.raises(TrimlineError, match=r"transformers cannot open .*, or fetch or rebuild the checkpoint\.$"):
        (load_model if name == "config.json" else load_tokenizer)(model)


@pytest.mark.parametrize("value", [[], "auto", "int8", "nothing"])
def test_a_type_that_no_model_has(model, value):
    edit(model / "config.json", dtype=value)
    with pytest.raises(TrimlineError, match="unusable dtype: .* Say float32"):
        load_model(model)


def test_a_config_that_promises_a_far_larger_model_is_refused_before_it_is_made(model):
    edit(model / "config.json", num_hidden_layers=4000)
    with pytest.raises(TrimlineError, match="describes 36,002 tensors, and the folder holds 20"):
        load_model(model)
    edit(model / "config.json", num_hidden_layers=2, vocab_size=2**30)
    with pytest.raises(TrimlineError, match="describes 68719"):
        load_model(model)


@pytest.mark.parametrize(
    ("key", "value"), [("architectures", 5), ("rope_parameters", [1]), ("rope_scaling", True), ("max_position_embeddings", "many")]
)
def test_inspect_says_in_a_sentence_what_is_wrong_with_a_config(model, key, value):
    config = json.loads((model / "config.json").read_text())
    config.pop("rope_parameters", None)
    (model / "config.json").write_text(json.dumps(config | {key: value}))
    if key == "architectures":
        assert inspect_folder(model).kind == "checkpoint"
    else:
        with pytest.raises(TrimlineError, match=r"config\.json"):
            inspect_folder(model)


def test_a_gguf_that_promises_more_than_it_lists_is_refused_at_once(model, tmp_path):
    path = tmp_path / "lies.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(400)
    writer.add_uint32("llama.embedding_length", 64)
    writer.add_uint32("llama.feed_forward_length", 64)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_uint32("llama.vocab_size", 128)
    writer.add_tensor("padding", np.zeros(10**6, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "out").mkdir()
    with pytest.raises(TrimlineError, match="lists 1 tensors, and its model needs"):
        source(ModelSlice(source=str(path)), RunOptions(threads=1), tmp_path / "out", Events())


@pytest.mark.parametrize("text", ["5 4", "0 0", "0-3 2", f"0-{MOST_UNITS}", "1,2"])
def test_a_list_of_units_ascends_and_ends(plan, text):
    edit(plan / "plan.json", blocks=text)
    with pytest.raises(TrimlineError, match="is no plan"):
        Plan.read(plan)


@pytest.mark.parametrize(
    "values",
    [{"ffn": ["0-3"]}, {"blocks": ""}, {"blocks": "0-2"}, {"residual": ""}, {"ffn": "0", "kv_groups": [[]]}, {"steps": [{"title": 1}]}],
)
def test_lists_that_belong_to_no_model(plan, values):
    edit(plan / "plan.json", **values)
    with pytest.raises(TrimlineError, match="is no plan"):
        Plan.read(plan)


def test_lists_that_would_fill_the_memory(plan):
    edit(plan / "plan.json", ffn=[f"0-{MOST_UNITS - 1}"] * (MOST_LISTED // MOST_UNITS + 1))
    with pytest.raises(TrimlineError, match="more units than any model"):
        Plan.read(plan)


def test_numbers_without_a_decimal_form_are_shown():
    assert shown(16**5000) == "a number of 20,001 bits"
    assert shown([16**5000]) == "a list with a huge number"
    assert shown("x" * 100, 10) == "'xxxxxxxx…"


@pytest.mark.parametrize("text", ['name: "\\ud800"', "name: !!timestamp x", "- " * 5000, "a: 0x" + "f" * 9000 + "\na: 1"])
def test_yaml_that_python_cannot_hold_or_print(text):
    with pytest.raises(TrimlineError):
        read_plain_yaml(text, "it")


def test_json_with_half_of_a_surrogate_pair(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "\\ud800"}')
    with pytest.raises(TrimlineError, match="surrogates"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "a.json") == {"a": "😀"}


def test_pipes_devices_and_broken_links_are_not_opened(model, tmp_path):
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "more.safetensors"):
        kept = (model / name).read_bytes() if (model / name).exists() else None
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("nowhere")):
            (model / name).unlink(missing_ok=True)
            make(model / name)
            for opened in (Checkpoint, load_tokenizer, lambda folder: identify(ModelSlice(source=str(folder)))):
                with pytest.raises(TrimlineError, match="is no file|does not exist|link"):
                    opened(model)
        (model / name).unlink()
        if kept is not None:
            (model / name).write_bytes(kept)


def test_a_link_out_of_the_folder_may_hold_weights_only(model, tmp_path):
    (tmp_path / "secret").write_text("s")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(TrimlineError, match="LICENSE is a link that leads out"):
        Checkpoint(model)
    (model / "LICENSE").unlink()
    (model / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert Checkpoint(model).locations


def test_the_hub_cache_links_into_its_own_blobs(model, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in model.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert Checkpoint(snapshot).locations
    load_tokenizer(snapshot)


def test_a_token_for_unknown_letters_that_is_not_there(model):
    document = json.loads((model / "tokenizer.json").read_text())
    document["model"] |= {"unk_token": "<nothing>", "byte_fallback": False}
    document["pre_tokenizer"] = None
    (model / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TrimlineError, match="The tokenizer cannot split the text"):
        tokenize(load_tokenizer(model), "naïve")


def test_more_blocks_than_can_be_counted_soon(model):
    edit(model / "config.json", num_hidden_layers=2**16)
    with pytest.raises(TrimlineError, match="num_hidden_layers: it is 65536, more than any model has"):
        inspect_folder(model)


def test_names_in_a_graph_that_are_no_text(tmp_path):
    value = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch_axis"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["logits"], ["same"])], "g", [value], [value])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    for name in (b"batch_axis", b"Identity", b"logits"):
        (tmp_path / "model.onnx").write_bytes(content.replace(name, b"\xff" * len(name)))
        with pytest.raises(TrimlineError, match="in bytes that are no text|not a readable ONNX file"):
            inspect_folder(tmp_path)


@pytest.mark.parametrize("named", ["x" * 5000, 7, None])
def test_a_pointer_to_what_no_file_system_takes(tmp_path, named):
    (tmp_path / "source.json").write_text(json.dumps({"folder": named}))
    with pytest.raises(TrimlineError, match=r"source\.json names no folder"):
        checkpoint_folder(tmp_path)
