"""What each shape profile refuses, and what the consumers are said to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.architecture.families import FAMILIES
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.rebuild.profiles import check_profile, check_request, consumers
from pipeline.rebuild.verdicts import ConsumerVerdict
from tests.pipeline.rebuild.cases import Choice, absent_parts, anything, fewer_blocks, fewer_groups, plan_for, rebuilt, same_width
from tests.tiny import tiny_model


def no_first_attention(choice: Choice) -> None:
    choice.kv[0] = ()


def no_ffn(choice: Choice) -> None:
    choice.ffn = [()] * 4


def no_attention(choice: Choice) -> None:
    choice.kv = [()] * 4


def three_groups(choice: Choice) -> None:
    choice.kv = [(0, 1, 2)] * 4


WIDE: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
LONG_ROPE: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
REFUSED: list[tuple[str, dict[str, Any], Profile, Callable[[Choice], None], str]] = [
    (
        "llama",
        {},
        Profile.UNIFORM,
        absent_parts,
        "needs all blocks alike: block 0 keeps 48 FFN channels and 2 KV groups, block 1 keeps 96 and 0",
    ),
    ("llama", {}, Profile.UNIFORM, no_ffn, "blocks without FFN"),
    ("llama", {}, Profile.FREE, no_attention, "No block keeps its attention"),
    ("llama", {}, Profile.DECILM, no_first_attention, "first block loses its attention"),
    ("qwen2", {}, Profile.DECILM, anything, "first block loses its attention"),
    ("llama", WIDE, Profile.DECILM, lambda choice: choice.kv.__setitem__(2, (1,)), "block 2 keeps 1"),
    ("llama", WIDE | {"attention_bias": True}, Profile.UNIFORM, three_groups, "does not take 6 query heads beside a hidden size of 64"),
    ("phi3", {"rope_parameters": LONG_ROPE}, Profile.UNIFORM, fewer_groups, "does not take 2 query heads"),
    ("phi3", {}, Profile.DECILM, same_width, "cannot express phi3"),
    ("qwen3", {}, Profile.DECILM, same_width, "cannot express qwen3"),
    ("opt", {}, Profile.DECILM, same_width, "cannot express opt"),
    ("opt", {}, Profile.UNIFORM, fewer_groups, "no head can go"),
    ("mistral", {"sliding_window": 32}, Profile.DECILM, same_width, "no sliding window"),
    ("qwen2", WINDOW, Profile.DECILM, same_width, "no sliding window"),
]


@pytest.mark.parametrize(
    ("family", "overrides", "profile", "choose", "message"), REFUSED, ids=[f"{r[0]}-{r[2]}-{r[4][:20]}" for r in REFUSED]
)
def test_refused_before_anything_is_written(
    tmp_path: Path, family: str, overrides: dict[str, Any], profile: Profile, choose: Callable[[Choice], None], message: str
) -> None:
    source = tiny_model(family, tmp_path / "dense", **overrides)
    with pytest.raises(TrimlineError, match=message) as caught:
        rebuilt(tmp_path, source, plan_for(source, choose), profile)
    assert caught.value.remedy
    assert not list((tmp_path / "out").iterdir())


def test_mistral_without_the_key_has_the_stock_window(tmp_path: Path) -> None:
    source = tiny_model("mistral", tmp_path / "dense")
    config = Checkpoint(source).config
    check_request(Profile.DECILM, FAMILIES["mistral"], True, False, False, config)
    del config["sliding_window"]
    with pytest.raises(TrimlineError, match="no sliding window"):
        check_request(Profile.DECILM, FAMILIES["mistral"], True, False, False, config)


@pytest.mark.parametrize(
    ("profile", "family", "asks", "message"),
    [
        (Profile.UNIFORM, "llama", (True, False, False), "its own FFN widths"),
        (Profile.UNIFORM, "llama", (False, True, True), "its own KV groups"),
        (Profile.UNIFORM, "opt", (False, False, True), "no head can go"),
        (Profile.DECILM, "llama", (True, True, True), "same number of KV groups"),
        (Profile.DECILM, "qwen3", (True, False, False), "cannot express qwen3"),
    ],
)
def test_requests_refused_from_the_recipe_alone(profile: Profile, family: str, asks: tuple[bool, bool, bool], message: str) -> None:
    with pytest.raises(TrimlineError, match=message):
        check_request(profile, FAMILIES[family], *asks, {"hidden_size": 64})


@pytest.mark.parametrize(
    ("profile", "family", "asks"),
    [
        (Profile.UNIFORM, "llama", (False, False, True)),
        (Profile.DECILM, "llama", (True, False, True)),
        (Profile.DECILM, "qwen2", (True, False, False)),
        (Profile.FREE, "opt", (True, True, True)),
    ],
)
def test_requests_allowed_from_the_recipe_alone(profile: Profile, family: str, asks: tuple[bool, bool, bool]) -> None:
    check_request(profile, FAMILIES[family], *asks, {"hidden_size": 64})


def verdicts(tmp: Path, family: str, choose: Callable[[Choice], None], profile: Profile) -> dict[str, ConsumerVerdict]:
    source = tiny_model(family, tmp / "dense")
    checkpoint = Checkpoint(source)
    result = plan_for(source, choose).selection.geometry(checkpoint.geometry)
    check_profile(result.family, checkpoint.geometry, result, profile, checkpoint.config)
    table = {verdict.consumer: verdict for verdict in consumers(result, profile, checkpoint.config)}
    assert len(table) == 12
    assert all(bool(verdict.change) is not verdict.loads for verdict in table.values())
    return table


@pytest.mark.parametrize("family", ["opt", "qwen3"])
def test_a_narrower_stream_needs_norms_that_allow_it(tmp_path: Path, family: str) -> None:
    dense = Checkpoint(tiny_model(family, tmp_path))
    with pytest.raises(TrimlineError, match=f"{family} cannot lose channels of the residual stream"):
        check_profile(dense.geometry.family, dense.geometry, replace(dense.geometry, hidden=48), Profile.FREE, dense.config)


def refusing(table: dict[str, ConsumerVerdict]) -> set[str]:
    return {name for name, verdict in table.items() if not verdict.loads}


def test_uniform_llama_loads_everywhere(tmp_path: Path) -> None:
    assert refusing(verdicts(tmp_path, "llama", same_width, Profile.UNIFORM)) == set()


UNEVEN = {"transformers (stock)", "optimum-onnx", "TensorRT-LLM", "TensorRT Edge-LLM", "SGLang"}  # what needs blocks alike


def test_uniform_qwen2_with_fewer_heads_does_not_load_in_vllm(tmp_path: Path) -> None:
    table = verdicts(tmp_path, "qwen2", fewer_groups, Profile.UNIFORM)
    assert refusing(table) == {"vLLM", "SGLang", "optimum-onnx"}
    assert table["llama.cpp"].why == "as GGUF architecture deci"


def test_uniform_phi3_with_fewer_heads_does_not_load_in_llama_cpp(tmp_path: Path) -> None:
    assert refusing(verdicts(tmp_path, "phi3", fewer_groups, Profile.UNIFORM)) == {"llama.cpp", "TensorRT Edge-LLM", "optimum-onnx"}
    assert refusing(verdicts(tmp_path / "whole", "phi3", same_width, Profile.UNIFORM)) == {"TensorRT Edge-LLM"}


def test_a_llama_that_is_written_as_mistral_is_not_on_the_list_of_edge_llm(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense", **WIDE)
    checkpoint = Checkpoint(source)
    result = plan_for(source, three_groups).selection.geometry(checkpoint.geometry)
    table = {verdict.consumer: verdict for verdict in consumers(result, Profile.UNIFORM, checkpoint.config)}
    assert refusing(table) == {"TensorRT Edge-LLM", "optimum-onnx"}
    assert "head's width" in table["optimum-onnx"].why
    assert "mistral" in table["TensorRT Edge-LLM"].why


def test_sglang_has_no_biases_in_the_ffn(tmp_path: Path) -> None:
    source = Checkpoint(tiny_model("llama", tmp_path, mlp_bias=True))
    table = {verdict.consumer: verdict for verdict in consumers(source.geometry, Profile.UNIFORM, source.config)}
    assert refusing(table) == {"SGLang"}
    assert "biases in the FFN" in table["SGLang"].why


def test_rotary_embeddings_that_look_at_the_length_of_the_text(tmp_path: Path) -> None:
    seen = {}
    for kind, rotary in (("longrope", dict(LONG_ROPE)), ("dynamic", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})):
        source = Checkpoint(tiny_model("llama", tmp_path / kind, rope_parameters=rotary))
        table = {verdict.consumer: verdict for verdict in consumers(source.geometry, Profile.UNIFORM, source.config)}
        seen[kind] = ("portable" in table["onnxruntime-genai"].why, table["TensorRT"].loads)
    assert seen == {"longrope": (True, True), "dynamic": (False, False)}


def test_what_was_never_started_says_so(tmp_path: Path) -> None:
    for profile, choose in ((Profile.UNIFORM, same_width), (Profile.FREE, anything)):
        table = verdicts(tmp_path / profile, "llama", choose, profile)
        assert {name for name, verdict in table.items() if verdict.checked == "not run"} == {
            "TensorRT-LLM",
            "TensorRT Edge-LLM",
            "SGLang",
        }


def test_decilm(tmp_path: Path) -> None:
    table = verdicts(tmp_path, "llama", absent_parts, Profile.DECILM)
    assert refusing(table) == UNEVEN
    assert table["llama.cpp"].why == "as GGUF architecture deci, with sizes per block"

    def uneven(choice: Choice) -> None:
        choice.ffn[2] = (1, 2, 3)

    table = verdicts(tmp_path / "uneven", "llama", uneven, Profile.DECILM)
    assert refusing(table) == UNEVEN


def test_free_says_what_stands_in_the_way_of_decilm(tmp_path: Path) -> None:
    table = verdicts(tmp_path, "llama", anything, Profile.FREE)
    assert refusing(table) == UNEVEN | {"vLLM"}
    assert table["vLLM"].change == "use profile 'decilm', with the same KV groups in every block and attention in the first block"
    table = verdicts(tmp_path / "opt", "opt", anything, Profile.FREE)
    assert "uniform" in table["vLLM"].change
    assert "opt" in table["llama.cpp"].why


def test_of_what_nobody_has_looked_at_nothing_is_promised(tmp_path: Path) -> None:
    table = verdicts(tmp_path, "granite_swa", same_width, Profile.UNIFORM)
    unknown = {name for name, verdict in table.items() if verdict.loads is None}
    servers = {"TensorRT-LLM", "TensorRT Edge-LLM", "vLLM", "SGLang", "optimum-onnx"}
    assert unknown == servers | {"ONNX Runtime", "onnxruntime-genai", "OpenVINO GenAI", "TensorRT"}
    assert {name for name in unknown if table[name].stands_in_the_way} == servers  # an export is run by its gate, which tells
    assert all("nobody has looked" in table[name].why and table[name].checked == "not looked at" for name in unknown)
    assert table["llama.cpp"].loads is False
    assert table["transformers (stock)"].loads


def test_a_mixture_is_promised_in_onnx_runtime_where_its_graph_ran_and_not_in_openvino(tmp_path: Path) -> None:
    table = verdicts(tmp_path, "qwen3_moe", fewer_blocks, Profile.UNIFORM)
    assert table["ONNX Runtime"].loads
    assert (table["OpenVINO GenAI"].loads, table["OpenVINO GenAI"].checked) == (None, "not looked at")


def test_of_a_type_that_was_tried_it_is_said_where(tmp_path: Path) -> None:
    table = verdicts(tmp_path, "gemma3_text", same_width, Profile.UNIFORM)
    assert (table["llama.cpp"].loads, table["llama.cpp"].why) == (True, "as GGUF architecture gemma3")
    assert table["ONNX Runtime"].loads
    assert table["TensorRT"].loads is None
