"""Every described architecture: whole tiny models of it are cut in ``uniform`` and in ``free`` and pass the gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.architecture import families
from pipeline.architecture.families import FAMILIES, Axis
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.live.blocks import states_of
from tests.pipeline.rebuild.cases import Choice, anything, fewer_blocks, fewer_groups, rebuilt_tiny, same_width
from tests.quick import some_types
from tests.tiny import TINY_FAMILIES, TINY_MIXTURES, TINY_TYPES, random_model, tiny_model

OTHERS = [name for name in TINY_TYPES if name not in TINY_FAMILIES]  # those are cut in tests/pipeline/rebuild
FOLDER, SHARED = Path(families.__file__).parent, {"__init__", "family", "kinds", "mixers", "parts"}
KEEP_HEADS = {name for name, family in FAMILIES.items() if family.square_attention or family.norms_over_heads}


def test_every_description_has_a_tiny_model() -> None:
    assert {*TINY_TYPES, *TINY_MIXTURES} == set(FAMILIES)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_a_description_is_short(file: Path) -> None:
    assert file.stem in SHARED or len(file.read_text(encoding="utf-8").splitlines()) <= 40


def test_norms_over_each_head_are_of_queries_or_of_keys() -> None:
    for family in FAMILIES.values():
        of = [norm.of for norm in family.norms if norm.axis is Axis.HEAD]
        assert of in ([], [Axis.QUERY, Axis.KV]), family.model_type


@pytest.mark.parametrize("name", some_types(OTHERS))
def test_uniform(tmp_path: Path, name: str) -> None:
    def choose(choice: Choice) -> None:
        same_width(choice)
        if name not in KEEP_HEADS:
            fewer_groups(choice)
        fewer_blocks(choice)

    blocks = Checkpoint(rebuilt_tiny(tmp_path, name, choose, Profile.UNIFORM)).geometry.blocks
    kept = len(Checkpoint(tmp_path / "dense").geometry.blocks) - 1
    assert (len(blocks), {block.ffn for block in blocks if block.ffn}) == (kept, {64})


@pytest.mark.parametrize("name", some_types(OTHERS))
def test_free(tmp_path: Path, name: str) -> None:
    def choose(choice: Choice) -> None:
        anything(choice)
        if FAMILIES[name].norms_over_heads or FAMILIES[name].has_beside:
            kept = max(map(len, choice.kv)) if FAMILIES[name].norms_over_heads else 1
            choice.kv = [tuple(range(kept)) if choice.geometry.blocks[i].kv_groups else () for i in range(len(choice.kv))]

    out = rebuilt_tiny(tmp_path, name, choose, Profile.FREE)
    assert read_json(out / "gate.json")["passed"]
    assert not Checkpoint(out).geometry.is_uniform


@pytest.mark.parametrize("name", TINY_TYPES)
@torch.no_grad()
def test_the_stream_takes_of_a_reader_what_the_description_says(name: str) -> None:
    family, model = FAMILIES[name], random_model(name)
    geometry = Geometry.from_config(model.config.to_dict())
    blocks, readers = {}, {}
    for sublayer in family.cuttable:  # of one block where one has both
        number = max(i for i, shape in enumerate(geometry.blocks) if shape.units(sublayer))
        blocks[sublayer] = model.get_submodule(family.blocks)[number]
        readers[sublayer] = blocks[sublayer].get_submodule(family.reader(sublayer).name)

    def behind_the_block(block: torch.nn.Module) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with block.register_forward_hook(lambda _, __, output: seen.append(states_of(output))):
            model(torch.arange(4, 12)[None], use_cache=False)
        return seen[0]

    for sublayer in sorted(readers, reverse=True):  # the FFN first
        before = behind_the_block(blocks[sublayer])
        with readers[sublayer].register_forward_hook(lambda _, __, output: output + 0.5):
            moved = behind_the_block(blocks[sublayer]) - before
        multiplier = family.multiplier(sublayer, model.config.to_dict())
        assert torch.allclose(moved, torch.full_like(moved, 0.5 * multiplier), atol=1e-5) is family.adds(sublayer)
        for parameter in readers[sublayer].parameters():  # so that nothing behind it reads what attention adds
            parameter.zero_()


@pytest.mark.parametrize("name", TINY_TYPES)
def test_what_a_config_leaves_out_is_what_the_stock_class_fills_in(tmp_path: Path, name: str) -> None:
    whole = read_json(tiny_model(name, tmp_path / "dense") / "config.json")
    optional = {str(linear.bias) for linear in FAMILIES[name].linears if isinstance(linear.bias, str)} | {"tie_word_embeddings"}
    filled = CONFIG_MAPPING[name]().to_dict()
    stock = {**whole, **{key: filled[key] for key in optional if key in filled}}
    left_out = {key: value for key, value in whole.items() if key not in optional}
    assert Geometry.from_config(left_out) == Geometry.from_config(stock)


@pytest.mark.parametrize("name", ["gemma4_text", "gemma4"])
def test_a_type_that_no_description_can_hold_is_refused_with_what_stands_in_the_way(name: str) -> None:
    """Looked at in transformers' own model: a multiple of the stream in every block, and heads of two widths."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    text = sizes | {"intermediate_size": 16, "vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma4_text", **text, global_head_dim=16))
    held = dict(model.state_dict())
    assert "model.layers.0.layer_scalar" in held
    assert {held[f"model.layers.{block}.self_attn.q_norm.weight"].shape[0] for block in range(6)} == {8, 16}
    assert "model.embed_tokens_per_layer.weight" in held
    with pytest.raises(
        TrimlineError, match=f"^The architecture {name} cannot be described here yet: its blocks multiply the whole residual"
    ):
        Geometry.from_config(text | {"model_type": name})
