"""One folder, one reading: what is opened computes what transformers' own loader computes, whole and block by block; the rest is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.checkpoints.checkpoint import INDEX, Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model, load_tokenizer, quiet_transformers
from pipeline.live.paging import open_paged
from tests.tiny import tiny_model
from trimline.inspect import inspect_folder

Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], object]
HEAD, TABLE, NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
IDS = torch.arange(3, 30)[None]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tied Llama, an untied Mistral and an OPT, two blocks each."""
    place = tmp_path_factory.mktemp("kept")
    return {family: tiny_model(family, place / family, num_hidden_layers=2) for family in ("llama", "mistral", "opt")}


def tensors(change: Callable[[Tensors], Tensors]) -> Change:
    return lambda folder: store(folder / "model.safetensors", change(load_file(folder / "model.safetensors")))


def store(path: Path, held: Tensors) -> None:
    save_file({name: tensor.clone().contiguous() for name, tensor in held.items()}, path, {"format": "pt"})


def config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({key: value for key, value in found.items() if value != "gone"}))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def shards(change: Callable[[Tensors, Tensors], object] = lambda first, second: None, beside: bool = False) -> Change:
    """The tensors in two shards and an index, changed; ``beside``: the single file stays."""

    def split(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        first, second = ({name: held[name].clone() for name in sorted(held)[part::2]} for part in (0, 1))
        weight_map = dict.fromkeys(first, "m-1.safetensors") | dict.fromkeys(second, "m-2.safetensors")
        change(first, second)
        store(folder / "m-1.safetensors", first)
        store(folder / "m-2.safetensors", second)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if not beside:
            (folder / "model.safetensors").unlink()

    return split


def renamed(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def hub_cache(folder: Path) -> None:
    blobs, snapshot = folder / "models--a--b" / "blobs", folder / "models--a--b" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")


def without_prefix(held: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in held.items()}


def mixed(held: Tensors) -> Tensors:
    return {name: tensor.half() if "mlp" in name else tensor.bfloat16() if "attn" in name else tensor for name, tensor in held.items()}


BUFFERS = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
OPENED: dict[str, tuple[str, Change]] = {
    "shards": ("mistral", shards()),
    "shards beside what they hold": ("llama", shards(beside=True)),
    "shards that differ beside the single file": ("llama", shards(lambda first, _: first.update({TABLE: first[TABLE] + 1}), beside=True)),
    "a stale index": ("llama", both(shards(beside=True), lambda folder: (folder / "m-2.safetensors").unlink())),
    "an index that cannot be read": ("llama", lambda folder: (folder / INDEX).write_text("[")),
    "a tensor twice, equal": ("llama", shards(lambda first, second: [part.update({NORM: torch.ones(64)}) for part in (first, second)])),
    "another maker's file": ("llama", lambda folder: store(folder / "consolidated.safetensors", {NORM: torch.ones(64)})),
    "a file that the config names": ("llama", both(renamed("model.safetensors", "a.safetensors"), config(transformers_weights="a.safetensors"))),
    "a cache of links": ("mistral", hub_cache),
    "no prefix": ("mistral", tensors(without_prefix)),
    "no prefix, OPT": ("opt", tensors(without_prefix)),
    "the prefix twice": ("mistral", tensors(lambda held: {f"model.{name}": tensor for name, tensor in held.items()})),
    "old buffers": ("llama", tensors(lambda held: held | BUFFERS)),
    "mixed types": ("mistral", both(tensors(mixed), config(dtype="gone"))),
    "a type that the config names": ("mistral", config(dtype="bfloat16")),
    "equal heads": ("llama", tensors(lambda held: held | {HEAD: held[TABLE]})),
    "a head of its own": ("llama", tensors(lambda held: held | {HEAD: held[TABLE] * 2})),
    "a head in another type": ("llama", tensors(lambda held: held | {HEAD: held[TABLE].half()})),
    "a head of its own, tied by the class": (
        "opt",
        both(tensors(lambda held: held | {HEAD: held["model.decoder.embed_tokens.weight"] * 2}), config(tie_word_embeddings="gone")),
    ),
    "a head and no table": ("llama", tensors(lambda held: {HEAD if name == TABLE else name: tensor for name, tensor in held.items()})),
    "an adapter beside": ("llama", lambda folder: (folder / "adapter_config.json").write_text("{}")),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPENED)
@torch.inference_mode()
def test_a_folder_means_what_transformers_reads_in_it(kept: Mapping[str, Path], tmp_path: Path, kind: str) -> None:
    family, change = OPENED[kind]
    folder = shutil.copytree(kept[family], tmp_path / "model")
    change(folder)
    folder = next(folder.glob("models--*/snapshots/*"), folder)
    checkpoint = Checkpoint(folder)
    assert set(checkpoint.locations) == {name for name, _ in checkpoint.geometry.tensors()}
    with quiet_transformers():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", adapter_kwargs={"subfolder": "none"}).eval()
    expected = theirs(IDS, use_cache=False).logits
    paged, _ = open_paged(folder, RunOptions(threads=1), checkpoint.dtype)
    for model in (load_model(folder), paged):
        assert model.dtype is theirs.dtype
        assert torch.equal(model(IDS, use_cache=False).logits, expected)
    assert checkpoint.geometry.tied == (theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight)
    assert bool(checkpoint.config.get("tie_word_embeddings", checkpoint.geometry.tied)) == checkpoint.geometry.tied


def biases(*linears: str) -> Change:
    widths = {"k_proj": 32, "v_proj": 32}
    added = {f"model.layers.{block}.{linear}.bias": torch.ones(widths.get(linear[-6:], 64)) for block in range(2) for linear in linears}
    return tensors(lambda held: held | added)


ATTENTION = tuple(f"self_attn.{letter}_proj" for letter in "qkvo")
REFUSED: dict[str, tuple[str, Change, str, str]] = {
    "a value head": ("llama", tensors(lambda held: held | {"score.weight": torch.ones(2, 64)}), r"score\.weight.* does not describe", "leaves them out"),
    "biases behind one key": ("llama", biases(*ATTENTION), "k_proj.bias and 7 more", "Say attention_bias: true"),
    "biases of other projections": ("llama", biases("self_attn.o_proj", "mlp.down_proj"), "down_proj.bias and 3 more", "no key for these alone"),
    "a block more": ("llama", config(num_hidden_layers=1), r"num_hidden_layers: 1, .* go on to block 1", "num_hidden_layers: 2"),
    "a block less": ("llama", config(num_hidden_layers=3), r"no tensor model\.layers\.2.* 9 of 29", "another model than its weights"),
    "no head": ("mistral", tensors(lambda held: {name: held[name] for name in held if name != HEAD}), "no tensor lm_head", "tie_word_embeddings: true"),
    "a longer table": ("llama", tensors(lambda held: held | {TABLE: held[TABLE].repeat(2, 1)}), r"\(256, 64\).*\(128, 64\)", "say vocab_size: 256"),
    "cut elsewhere": ("llama", tensors(lambda held: held | {QUERY: held[QUERY][:32]}), r"q_proj.* \(32, 64\).* \(64, 64\)", "before it was cut"),
    "integers": ("llama", tensors(lambda held: held | {NORM: torch.ones(64, dtype=torch.int64)}), r"norm.* type I64", "as a float"),
    "another prefix": ("llama", tensors(lambda held: {f"module.{name}": held[name] for name in held}), "20 of 20", "without 'module.'"),
    "LoRA inside": ("llama", tensors(lambda held: held | {QUERY.replace("weight", "lora_A.weight"): torch.ones(4, 64)}), "adapter inside", "merge_and_unload"),
    "a tensor twice": ("llama", shards(lambda first, second: (first.update({NORM: torch.ones(64)}), second.update({NORM: torch.zeros(64)}))), "in both", "left over"),
    "a missing shard": ("llama", both(shards(), lambda folder: (folder / "m-2.safetensors").unlink()), r"'m-2\.safetensors'", "Fetch that shard"),
    "a single file that is a shard": ("llama", both(shards(), renamed("m-1.safetensors", "model.safetensors"), lambda folder: store(folder / "m-1.safetensors", {"a": torch.ones(1)})), "10 of 20", "does not read beside"),
    "no index": ("llama", both(shards(), renamed("m-1.safetensors", "model-00001-of-00002.safetensors"), lambda folder: (folder / INDEX).unlink()), "neither", "Rename|Fetch model"),
    "a variant": ("llama", renamed("model.safetensors", "model.fp16.safetensors"), r"does not open model\.fp16", "Rename model.fp16"),
    "an empty file": ("llama", tensors(lambda held: {}), "20 tensors, and the folder holds 0", "another model"),
    "a pad token beyond the table": ("llama", config(pad_token_id=128), "pad_token_id: 128.* 128 rows", "to null"),
    "an adapter alone": ("llama", lambda folder: [(folder / name).rename(folder / f"adapter_{name}") for name in ("config.json", "model.safetensors")], "holds an adapter", "merge_and_unload"),
    "an adapter with a config": ("llama", renamed("model.safetensors", "adapter_model.safetensors"), "holds an adapter", "merge_and_unload"),
    "fp8": ("llama", both(config(quantization_config={"quant_method": "fp8"}), tensors(lambda held: held | {QUERY: held[QUERY].to(torch.float8_e4m3fn), QUERY + "_scale_inv": torch.ones(1, 1)})), r"quantised \(fp8", "save_original_format=False"),
    "a config that says it is quantised": ("llama", config(quantization_config={"load_in_4bit": True}), r"quantised \(bitsandbytes", "tensors are whole: delete"),
    "scales without a config": ("llama", tensors(lambda held: held | {QUERY + "_scale": torch.ones(1)}), "quantised .*_scale", "quantised from"),
    "int8 without a config": ("llama", tensors(lambda held: held | {QUERY: held[QUERY].to(torch.int8)}), "quantised .* is I8", "quantised from"),
    "gptq without a config": ("llama", tensors(lambda held: held | {QUERY.replace("weight", "qweight"): torch.ones(1, dtype=torch.int32)}), "gptq", "quantised from"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_can_mean_nothing_is_refused_by_name(kept: Mapping[str, Path], tmp_path: Path, kind: str) -> None:
    family, change, problem, remedy = REFUSED[kind]
    folder = shutil.copytree(kept[family], tmp_path / "model")
    change(folder)
    with pytest.raises(TrimlineError, match=problem) as caught:
        Checkpoint(folder)
    assert remedy.split("|")[0] in caught.value.remedy or remedy.split("|")[-1] in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("shards that differ beside the single file", "Delete model.safetensors.index.json"), ("an adapter beside", "merge")],
)
def test_a_folder_that_could_mean_another_model_is_read_and_said_and_nothing_is_made_of_it(kept, tmp_path, kind, remedy) -> None:
    folder = shutil.copytree(kept["llama"], tmp_path / "model")
    OPENED[kind][1](folder)
    said = []
    checkpoint = Checkpoint(folder)
    checkpoint.say_doubts(Events(lambda event: said.append(event.text)))
    assert len(said) == 1
    with pytest.raises(TrimlineError, match=remedy):
        checkpoint.demand_no_doubt()


def test_an_adapter_alone_is_called_one_by_whoever_looks_first(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for look in (Checkpoint, load_tokenizer, inspect_folder):
        with pytest.raises(TrimlineError, match="holds an adapter .* Merge it"):
            look(tmp_path)


def test_bytes_are_those_of_the_files_that_are_read(kept, tmp_path) -> None:
    folder = shutil.copytree(kept["llama"], tmp_path / "model")
    expected = (folder / "model.safetensors").stat().st_size
    shards(beside=True)(folder)
    assert Checkpoint(folder).bytes == expected
    (folder / "model.safetensors").unlink()
    assert Checkpoint(folder).bytes == sum((folder / f"m-{part}.safetensors").stat().st_size for part in (1, 2))
