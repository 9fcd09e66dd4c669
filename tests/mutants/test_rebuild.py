"""The rebuild gate against what it has to notice: a reader that gives other weights, and a written folder that is damaged in one place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.architecture.profile import Profile
from pipeline.artefacts.sums import write_sums
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.tokenizers import demand_same_tokenizer
from pipeline.plan.plan import Plan
from pipeline.rebuild import gate as gate_module
from pipeline.rebuild import stage
from pipeline.rebuild.gate import gate_again
from tests.pipeline.rebuild import cases
from tests.pipeline.rebuild.cases import OPTIONS, Choice, plan_for, rebuilt, same_width
from tests.tiny import tiny_model
from trimline.verify.folders import verify_folder

PAGED = replace(OPTIONS, memory=1)
Read = Callable[[Checkpoint, str], torch.Tensor]
read: Read = Checkpoint.tensor


def negated(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Reading what was written so gives the right values again."""
    return -read(checkpoint, name) if name.endswith("1.mlp.down_proj.weight") else read(checkpoint, name)


def one_value_off(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    tensor = read(checkpoint, name).clone()
    if name == "model.norm.weight":
        tensor[7] += 0.05
    return tensor


def of_another_block(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return read(checkpoint, name.replace("layers.1.self_attn.v_proj", "layers.0.self_attn.v_proj"))


def half_precision(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return read(checkpoint, name).bfloat16().float()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("dense"), num_hidden_layers=2)


@pytest.mark.parametrize(
    ("wrong", "options"),
    [(negated, OPTIONS), (negated, PAGED), (one_value_off, OPTIONS), (of_another_block, PAGED), (half_precision, OPTIONS)],
    ids=lambda value: getattr(value, "__name__", "paged" if value is PAGED else "whole"),
)
def test_a_reader_that_gives_other_weights(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Read, options: RunOptions
) -> None:
    plan = plan_for(dense, same_width)
    monkeypatch.setattr(Checkpoint, "tensor", wrong)
    monkeypatch.setattr(cases, "OPTIONS", options)
    with pytest.raises(GateError, match="does not compute what the dense model"):
        rebuilt(tmp_path, dense, plan, Profile.UNIFORM)


@pytest.mark.parametrize(
    ("family", "part"), [("lfm2", "0.conv.conv.weight"), ("granitemoehybrid", "0.mamba.A_log"), ("youtu", "1.self_attn.kv_b_proj.weight")]
)
def test_a_reader_that_gives_another_carried_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, part: str) -> None:
    source = tiny_model(family, tmp_path / "dense")
    plan = plan_for(source, same_width)
    monkeypatch.setattr(
        Checkpoint, "tensor", lambda checkpoint, name: -read(checkpoint, name) if name.endswith(part) else read(checkpoint, name)
    )
    with pytest.raises(GateError, match="does not compute what the dense model"):
        rebuilt(tmp_path, source, plan, Profile.UNIFORM)


@dataclass(frozen=True)
class Written:
    """A dense model with a window, a scaled rotary embedding, templates and two ends of text; and what was made of it."""

    dense: Path
    plan: Plan
    out: Path

    def damaged(self, tmp: Path) -> Path:
        """A copy to damage."""
        return shutil.copytree(self.out, tmp / "damaged")

    def gate(self, folder: Path) -> None:
        gate_again(Checkpoint(self.dense), self.plan, folder, OPTIONS, Events())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    types = ["full_attention", "sliding_attention", "full_attention"]
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 10000.0}
    window = {"use_sliding_window": True, "sliding_window": 56, "layer_types": types, "max_window_layers": 1}
    tmp = tmp_path_factory.mktemp("written")
    dense = tiny_model("qwen3", tmp / "dense", num_hidden_layers=3, max_position_embeddings=1024, rope_parameters=scaled, **window)
    edit(dense / "generation_config.json", eos_token_id=[2, 5], temperature=0.6, do_sample=True)
    edit(dense / "config.json", eos_token_id=[2, 5])
    (dense / "chat_template.jinja").write_text("{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")
    (dense / "additional_chat_templates").mkdir()
    (dense / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (dense / "LICENSE").write_text("free")

    def choose(choice: Choice) -> None:
        same_width(choice)
        choice.blocks.remove(0)

    plan = plan_for(dense, choose)
    return Written(dense, plan, rebuilt(tmp, dense, plan, Profile.UNIFORM))


def edit(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    known = read_json(path) | values
    write_json(path, {key: value for key, value in known.items() if value is not None})


def rope(**values: Any) -> Callable[[Path], None]:
    """By the keys of transformers 5, and by those of 4 where they are there: it takes ``rope_scaling`` first."""

    def damage(folder: Path) -> None:
        config = read_json(folder / "config.json")
        older = {"rope_theta": config.get("rope_theta")} | (config.get("rope_scaling") or {})
        changed = {"rope_parameters": config["rope_parameters"] | values}
        if config.get("rope_scaling"):
            changed["rope_scaling"] = config["rope_scaling"] | {
                key: value for key, value in values.items() if key in config["rope_scaling"]
            }
        edit(folder / "config.json", **changed, **{key: value for key, value in values.items() if key == "rope_theta" and older[key]})

    return damage


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **values)


def generation(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "generation_config.json", **values)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def two_ids_swapped(folder: Path) -> None:
    state = read_json(folder / "tokenizer.json")
    vocabulary = state["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    write_json(folder / "tokenizer.json", state)


def another_normalizer(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "Lowercase"})


def other_text(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("{{ messages }}")


def weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {name: change(tensors[name]).contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def of_the_other_block(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"] = tensors["model.layers.1.self_attn.k_proj.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BESIDE_WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "ends of text wrong": (config(eos_token_id=[2, 6]), "eos_token_id is"),
    "ends of text missing": (config(eos_token_id=None), "eos_token_id is absent"),
    "one end of text of two": (config(eos_token_id=2), "eos_token_id is 2 and not"),
    "ends of text wrong, generation": (generation(eos_token_id=2), "eos_token_id is 2 and not"),
    "ends of text missing, generation": (generation(eos_token_id=None), "eos_token_id is absent"),
    "temperature": (generation(temperature=0.7), "temperature is 0.7"),
    "begin of text": (config(bos_token_id=3), "bos_token_id is 3"),
    "padding": (config(pad_token_id=2), "pad_token_id is 2"),
    "positions halved": (config(max_position_embeddings=512), "max_position_embeddings is 512 and not 1024"),
    "KV heads": (config(num_key_value_heads=2), "num_key_value_heads is 2 where it must be 4"),
    "query heads": (config(num_attention_heads=4), "num_attention_heads is 4 where it must be 8"),
    "window dropped": (config(sliding_window=None), "sliding_window is absent"),
    "window off by one": (config(sliding_window=57), "sliding_window is 57"),
    "window not used": (config(use_sliding_window=False), "use_sliding_window is False"),
    "types of blocks": (config(layer_types=["full_attention", "sliding_attention"]), "layer_types is"),
    "rope theta": (rope(rope_theta=10001.0), "rope_parameters is"),
    "activation": (config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "epsilon": (config(rms_norm_eps=1.1e-6), "rms_norm_eps is"),
    "head tied": (config(tie_word_embeddings=True), "tie_word_embeddings is True"),
    "scaling of attention": (config(attention_multiplier=2.0), "attention_multiplier is 2.0 and not absent"),
    "vocabulary": (config(vocab_size=127), "vocab_size is 127"),
    "no generation config": (without("generation_config.json"), "has generation_config.json, and .* has not"),
    "no tokenizer": (without("tokenizer.json"), "has tokenizer.json, and .* has not"),
    "two ids swapped": (two_ids_swapped, "it makes .* at place"),
    "another normalizer": (another_normalizer, "it makes .* at place 0 of .The river"),
    "chat template": (other_text("chat_template.jinja"), "another chat template"),
    "named chat template": (other_text("additional_chat_templates/tools.jinja"), "another chat template"),
    "licence": (without("LICENSE"), "has LICENSE, and .* has not"),
}


@pytest.mark.parametrize("name", BESIDE_WEIGHTS)
def test_what_stands_beside_the_weights(written: Written, tmp_path: Path, name: str) -> None:
    damage, message = BESIDE_WEIGHTS[name]
    folder = written.damaged(tmp_path)
    damage(folder)
    with pytest.raises(GateError, match=message):
        written.gate(folder)


@pytest.mark.parametrize(
    "damage", [two_ids_swapped, another_normalizer, other_text("chat_template.jinja")], ids=["ids", "normalizer", "template"]
)
def test_tokenizers_differ_as_transformers_opens_them(written: Written, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """So it is seen where no file is copied byte by byte."""
    folder = written.damaged(tmp_path)
    demand_same_tokenizer(written.dense, folder)
    damage(folder)
    with pytest.raises(GateError, match="is not the source's"):
        demand_same_tokenizer(written.dense, folder)


COMPUTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "window dropped": (
        config(sliding_window=None, use_sliding_window=False, layer_types=["full_attention"] * 2),
        "past the sliding window",
    ),
    "window one longer": (config(sliding_window=57), "past the sliding window"),
    "window one shorter": (config(sliding_window=55), "past the sliding window"),
    "rope theta": (rope(rope_theta=10050.0), "first positions"),
    "rope factor": (rope(factor=3.9), "first positions"),
    "epsilon": (config(rms_norm_eps=1e-3), "first positions"),
    "activation": (config(hidden_act="gelu_pytorch_tanh"), "first positions"),
    "one projection zero": (weight("model.layers.1.self_attn.v_proj.weight", torch.zeros_like), "first positions"),
    "one value": (weight("model.norm.weight", lambda tensor: tensor + 0.01 * (torch.arange(64) == 9)), "first positions"),
    "a tensor of another block": (of_the_other_block, "first positions"),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever the settings say: the logits alone show it."""
    damage, where = COMPUTED[name]
    folder = written.damaged(tmp_path)
    damage(folder)
    monkeypatch.setattr(gate_module, "demand_settings", lambda *_: {})
    with pytest.raises(GateError, match=rf"\(({where})\) does not compute"):
        written.gate(folder)


def test_angles_of_long_texts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No position that a short text has shows them."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + 0.5 * at for at in range(8)]}
    scaled = {"rope_type": "longrope", "original_max_position_embeddings": 256, "rope_theta": 10000.0, "factor": 4.0, **factors}
    long = {"rope_parameters": scaled, "original_max_position_embeddings": 256, "max_position_embeddings": 1024}
    dense = tiny_model("phi3", tmp_path / "dense", num_hidden_layers=1, **long)
    plan = plan_for(dense, same_width)
    out = rebuilt(tmp_path, dense, plan, Profile.UNIFORM)
    rope(long_factor=[1.0 + 0.6 * at for at in range(8)])(out)
    monkeypatch.setattr(gate_module, "demand_settings", lambda *_: {})
    with pytest.raises(GateError, match=r"\(up to the last position\) does not compute"):
        gate_again(Checkpoint(dense), plan, out, OPTIONS, Events())


def test_a_changed_folder_whose_sums_were_made_again_is_found_by_verify(written: Written, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    plan.mkdir()
    written.plan.write(plan)
    folder = written.damaged(tmp_path)
    for damage, problem in (
        (None, None),
        (config(eos_token_id=2), "eos_token_id"),
        (weight("model.norm.weight", lambda t: t * 1.01), "computes"),
    ):
        if damage is not None:
            damage(folder)
        write_sums(folder)
        found = verify_folder(folder, against=written.dense, plan=plan, options=OPTIONS, events=Events())
        assert [problem in str(one) for one in found.problems] == ([] if problem is None else [True])
        shutil.copyfile(written.out / "config.json", folder / "config.json")


def test_a_writer_that_forgets(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "copy_companions", lambda *_: None)
    with pytest.raises(GateError, match="has not"):
        rebuilt(tmp_path, written.dense, written.plan, Profile.UNIFORM)
    monkeypatch.undo()
    smaller = stage.smaller_config
    monkeypatch.setattr(stage, "smaller_config", lambda *given: smaller(*given) | {"max_position_embeddings": 512})
    (tmp_path / "again").mkdir()
    with pytest.raises(GateError, match="max_position_embeddings is 512"):
        rebuilt(tmp_path / "again", written.dense, written.plan, Profile.UNIFORM)
