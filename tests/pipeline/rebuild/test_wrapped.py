"""Language models inside vision-language folders: cut whole way, what stands beside them carried, images answered as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import check_stream
from pipeline.architecture.profile import Profile
from pipeline.architecture.wrappers import WRAPPERS, name_in_whole, name_like, text_name
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.nested import nested
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import open_model
from pipeline.live.untouched import load_untouched
from pipeline.plan.plan import Plan
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.rebuild.consumers import consumers
from pipeline.rebuild.gate import gate, gate_again
from pipeline.rebuild.profiles import check_request
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover
from pipeline.sources.config import named_model
from pipeline.sources.folder import CALIBRATION
from pipeline.sources.recipe import ModelSlice
from tests.pipeline.rebuild.cases import OPTIONS, Choice, plan_for, rebuilt, same_width
from tests.tiny import TINY_WRAPPERS, tiny_wrapped

WINDOWS = torch.randint(4, 100, (4, 32), generator=torch.Generator().manual_seed(3))
STEPS: list[dict[str, Any]] = [
    {"method": "block_influence", "budget": {"layer": {"keep": 3}}},
    {"method": "cfsp", "budget": {"ffn": {"keep": 48}}, "allocation": "uniform", "compensation": "least_squares"},
    {"method": "cfsp_extended", "budget": {"kv_group": {"keep": 1}}, "allocation": "uniform", "compensation": "least_squares"},
]
WEIGHTS = "model.safetensors"


def planned(source: Path, steps: list[dict[str, Any]]) -> Plan:
    model = ShrinkingModel(load_model(source, dtype=torch.float32), Checkpoint(source))
    return make_plan(model, WINDOWS, PruneSlice.model_validate({"steps": steps}), Events())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Plan, Path]:
    """A dense LLaVA, a plan, and what was rebuilt by it."""
    tmp = tmp_path_factory.mktemp("llava")
    source = tiny_wrapped("llava", tmp / "dense")
    plan = plan_for(source, same_width)
    return Checkpoint(source), plan, rebuilt(tmp, source, plan, Profile.UNIFORM)


def test_every_wrapper_has_a_tiny_model() -> None:
    assert set(TINY_WRAPPERS) == set(WRAPPERS)


@pytest.mark.parametrize("kind", TINY_WRAPPERS)
def test_measured_cut_and_rebuilt(tmp_path: Path, kind: str) -> None:
    source = tiny_wrapped(kind, tmp_path / "dense")
    out = rebuilt(tmp_path, source, planned(source, STEPS), Profile.UNIFORM)
    before, after = load_file(source / WEIGHTS), load_file(out / WEIGHTS)
    beside = {name for name in before if text_name(name) is None}
    assert beside
    assert beside == {name for name in after if text_name(name) is None}
    assert all(torch.equal(before[name], after[name]) for name in beside)
    assert Checkpoint(out).geometry.total_parameters() == sum(tensor.numel() for tensor in after.values())
    text = AutoModelForImageTextToText.from_pretrained(out).config.get_text_config()
    assert (text.num_hidden_layers, text.intermediate_size, text.num_key_value_heads) == (3, 48, 1)
    assert {"an image", "another image"} < read_json(out / "gate.json")["attempts"][-1].keys()
    assert (out / "preprocessor_config.json").read_bytes() == (source / "preprocessor_config.json").read_bytes()
    assert read_json(out / "config.json").keys() == read_json(source / "config.json").keys()


@pytest.mark.parametrize("kind", TINY_WRAPPERS)
def test_the_language_model_alone_says_what_the_whole_says(tmp_path: Path, kind: str) -> None:
    """Its own class, filled from the folder whole and one block at a time, against the whole class without an image."""
    source = tiny_wrapped(kind, tmp_path)
    whole, _ = load_untouched(source, OPTIONS, torch.float32)
    paged, paging = open_model(source, RunOptions(dtype="float32", threads=1, memory=1), torch.float32)
    assert paging is not None
    assert type(paged) is type(load_model(source)) is not type(whole)
    with torch.inference_mode():
        expected = whole(WINDOWS[:1]).logits
        assert torch.allclose(paged(WINDOWS[:1]).logits, expected, atol=1e-5)
        assert torch.allclose(load_model(source)(WINDOWS[:1]).logits, expected, atol=1e-5)


def test_the_gate_holds_with_blocks_on_disk(case: tuple[Checkpoint, Plan, Path]) -> None:
    gate_again(*case, RunOptions(dtype="float32", threads=1, memory=1), Events())


def damaged_tensor(part: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        name = next(name for name in sorted(tensors) if part in name)
        tensors[name] = tensors[name].clone()
        tensors[name].flatten()[0] += 1e-6
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def said_otherwise(key: str, value: Any, inside: bool) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = read_json(folder / "config.json")
        (config["text_config"] if inside else config)[key] = value
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_tensor("vision_tower."), "vision_tower.*carried as it is"),
        (damaged_tensor("multi_modal_projector."), "multi_modal_projector.*carried as it is"),
        (without("preprocessor_config.json"), "has preprocessor_config.json"),
        (said_otherwise("vision_feature_layer", -1, inside=False), "vision_feature_layer is -1"),
        (said_otherwise("image_token_index", 7, inside=False), "image_token_index is 7"),
        (said_otherwise("rms_norm_eps", 1e-3, inside=True), "text_config.rms_norm_eps"),
    ],
)
def test_the_gate_refuses_what_is_damaged(
    case: tuple[Checkpoint, Plan, Path], tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    checkpoint, plan, out = case
    damage(Path(shutil.copytree(out, tmp_path / "damaged")))
    with pytest.raises(GateError, match=said):
        gate_again(checkpoint, plan, tmp_path / "damaged", OPTIONS, Events())


@pytest.mark.parametrize("look", [gate, gate_again])
def test_the_gate_refuses_a_language_model_that_was_cut_wrongly(
    case: tuple[Checkpoint, Plan, Path], tmp_path: Path, look: Callable[..., None]
) -> None:
    checkpoint, plan, out = case
    damaged = Path(shutil.copytree(out, tmp_path / "damaged"))
    tensors = load_file(damaged / WEIGHTS)
    name = next(name for name in sorted(tensors) if "down_proj" in name and "vision" not in name)
    tensors[name] = tensors[name].roll(1, dims=1)
    save_file(tensors, damaged / WEIGHTS, {"format": "pt"})
    with pytest.raises(GateError, match="the dense model with the plan applied as zeros"):
        look(checkpoint, plan, damaged, OPTIONS, Events())


def test_a_model_that_looks_at_no_image_is_refused(tmp_path: Path) -> None:
    source = tiny_wrapped("llava", tmp_path / "dense")
    tensors = load_file(source / WEIGHTS)
    tensors |= {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if "linear_2" in name}
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    with pytest.raises(GateError, match="answers two images alike"):
        rebuilt(tmp_path, source, plan_for(source, same_width), Profile.UNIFORM)


def test_names_are_kept_as_the_folder_has_them(tmp_path: Path, case: tuple[Checkpoint, Plan, Path]) -> None:
    """Some folders have the names that the whole class has in memory."""
    source = Path(shutil.copytree(case[0].folder, tmp_path / "dense"))
    tensors = load_file(source / WEIGHTS)
    own = {name: text_name(name) for name in tensors}
    renamed = {f"model.{name}" if (mine := own[name]) is None else name_in_whole(mine): tensor for name, tensor in tensors.items()}
    save_file(renamed, source / WEIGHTS, {"format": "pt"})
    assert Checkpoint(source).geometry == case[0].geometry
    written = load_file(rebuilt(tmp_path, source, case[1], Profile.UNIFORM) / WEIGHTS)
    assert written.keys() == renamed.keys()


def test_names_there_and_back() -> None:
    for name in ("model.layers.3.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"):
        for example in ("model.language_model.norm.weight", "language_model.model.norm.weight"):
            assert text_name(name_like(name, example)) == name


def test_what_a_nested_config_leaves_out_is_what_its_class_fills_in() -> None:
    """LLaVA 1.5 states neither hidden size nor heads; older Gemma 3 spell their rotary embedding otherwise."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    found = nested({"model_type": "llava", "text_config": text, "vision_config": {"model_type": "clip_vision_model"}})
    assert found is not None
    geometry = Geometry.from_config(found.text)
    assert (geometry.hidden, len(geometry.blocks), geometry.blocks[0].ffn) == (4096, 32, 11008)
    assert found.with_text(found.text)["text_config"].items() >= text.items()
    old = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 12, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    found = nested({"model_type": "gemma3", "text_config": old, "vision_config": {}})
    assert found is not None
    assert found.text["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert found.with_text({**found.text, "intermediate_size": 5})["text_config"]["rope_scaling"] == old["rope_scaling"]


def test_profiles_and_spaces_that_a_larger_model_does_not_allow(case: tuple[Checkpoint, Plan, Path], tmp_path: Path) -> None:
    dense = case[0].geometry
    for profile in (Profile.FREE, Profile.DECILM):
        with pytest.raises(TrimlineError, match="class of a llava makes its language model itself") as refused:
            check_request(profile, dense.family, False, False, False, case[0].config, dense.within)
        assert "'uniform'" in refused.value.remedy
        (tmp_path / profile.value).mkdir()
        with pytest.raises(TrimlineError, match="class of a llava"):
            rebuilt(tmp_path / profile.value, case[0].folder, case[1], profile)
    with pytest.raises(TrimlineError, match="projector beside it writes images into all of them"):
        check_stream(dense.family, dense.within)


def test_blocks_that_image_features_are_added_after_stay(tmp_path: Path) -> None:
    source = tiny_wrapped("qwen3_vl", tmp_path / "dense")

    def without_second(choice: Choice) -> None:
        choice.blocks.remove(1)

    with pytest.raises(TrimlineError, match="Block 1 cannot go: a qwen3_vl adds features of its image after the first 2 blocks"):
        rebuilt(tmp_path, source, plan_for(source, without_second), Profile.UNIFORM)
    kept = planned(source, [{"method": "block_influence", "budget": {"layer": {"keep": 2}}}]).selection.blocks
    assert kept == (0, 1)


def test_a_language_model_of_no_supported_type_is_named(tmp_path: Path) -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "bloom"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(TrimlineError, match="'bloom' is not supported.*around one of these gemma3"):
        Checkpoint(tmp_path)


def test_a_block_beyond_the_config_is_no_part_of_the_tower(case: tuple[Checkpoint, Plan, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(case[0].folder, tmp_path / "dense"))
    tensors = load_file(folder / WEIGHTS) | {"language_model.model.layers.4.input_layernorm.weight": torch.ones(64)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(TrimlineError, match="weights go on to block 4"):
        Checkpoint(folder)


def test_recovery_writes_the_whole_again(case: tuple[Checkpoint, Plan, Path], tmp_path: Path) -> None:
    (tmp_path / CALIBRATION).write_text("The quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    few = RecoverSlice(kind="full", steps=2, batch=2, micro_batch=2, windows=4, window=24)
    recover(case[0].folder, case[2], tmp_path, few, OPTIONS, out, tmp_path / "work", Events())
    before, after = load_file(case[2] / WEIGHTS), load_file(out / WEIGHTS)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(text_name(name) is not None for name in changed)
    assert read_json(out / "config.json") == read_json(case[2] / "config.json")


def test_what_is_said_of_it(case: tuple[Checkpoint, Plan, Path]) -> None:
    named = named_model(ModelSlice(source=str(case[0].folder)))
    assert named.geometry.within is WRAPPERS["llava"]
    verdicts = {row.consumer: row for row in consumers(case[0].geometry, Profile.UNIFORM, case[0].config)}
    assert not verdicts["vLLM"].loads
    assert "not looked at" in verdicts["vLLM"].why
    assert "without images" in verdicts["ONNX Runtime"].why
    assert "AutoModelForImageTextToText" in verdicts["transformers (stock)"].why
