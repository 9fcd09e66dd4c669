"""What a recipe and config.json rule out already is said before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from tests.tiny import tiny_model
from trimline.recipe import checked_recipe, parse_recipe, recipe_text
from trimline.stages.preflight import preflight
from trimline.stages.rounds import consumer_of

FFN = {"method": "cfsp", "budget": {"ffn": {"remove": 0.5}}, "round_to": 8}
SHORT = {"workloads": ["8/1"]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five KV groups of two heads beside a hidden size of 100, which eight do not divide; its biases keep it from being a Mistral."""
    sizes = {"hidden_size": 100, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 10, "attention_bias": True}
    return tiny_model("llama", tmp_path_factory.mktemp("biased") / "model", num_hidden_layers=2, **sizes)


def look(folder: Path, *steps: dict[str, Any], **more: Any) -> None:
    preflight(
        checked_recipe({"prune": {"steps": [*steps]}, "rebuild": {"profile": "free"}, "benchmark": SHORT, **more}),
        RunOptions(),
        Checkpoint(folder),
    )


def test_ranks_by_importance_beside_a_step_on_single_weights(llama):
    """A step that makes single weights zero measures no importance of blocks, so that ranks have nothing to follow."""
    weights = {"method": "wanda", "budget": {"weight": {"remove": 0.5}}}
    ranked = {"kind": "lora", "lora": {"rank_by": "importance"}}
    with pytest.raises(TrimlineError, match="no step of the plan measures it"):
        look(llama, weights, recover=ranked)
    look(llama, weights, recover={"kind": "lora", "lora": {"rank_by": "uniform"}})
    look(llama, FFN, weights, recover=ranked)


@pytest.mark.parametrize(("workload", "needed"), [("257/1", 257), ("200/58", 257), ("10000/1x4", 10000)])
def test_a_timed_request_longer_than_the_models_positions(llama, workload, needed):
    with pytest.raises(TrimlineError, match=f"takes {needed:,} positions, and the model has 256"):
        look(llama, FFN, benchmark={"workloads": ["8/1", workload]})


def test_timed_requests_that_just_fit(llama):
    look(llama, FFN, benchmark={"workloads": ["256/1", "200/57"]})


def test_heads_that_the_config_class_does_not_take(biased):
    kept = {"method": "magnitude", "budget": {"kv_group": {"keep": 4}}, "allocation": "uniform"}
    with pytest.raises(TrimlineError, match="does not take 8 query heads beside a hidden size of 100"):
        look(biased, kept, rebuild={"profile": "uniform"})
    look(biased, kept)
    look(biased, {**kept, "budget": {"kv_group": {"keep": 1}}}, rebuild={"profile": "uniform"})
    look(
        biased, {**kept, "budget": {"kv_group": {"remove": 0.2}}}, rebuild={"profile": "uniform"}
    )  # some number is taken; which, is not known


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"export": {"format": "openvino"}}, "runtime onnxruntime does not open what export.format openvino writes"),
        ({"benchmark": SHORT | {"runtime": "openvino"}}, "runtime openvino does not open what export.format onnx writes"),
        (
            {"export": {"format": "openvino"}, "benchmark": SHORT | {"runtime": "openvino"}, "lm_eval": {"tasks": ["arc_easy"]}},
            "lm_eval reads an ONNX graph",
        ),
        (
            {"export": {"format": "openvino"}, "benchmark": SHORT | {"runtime": "openvino"}, "package": {"targets": ["triton"]}},
            "package.targets triton reads an ONNX graph",
        ),
    ],
)
def test_forms_and_runtimes_that_do_not_go_together(llama: Path, more: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.openvino.runtime.has", lambda module: True)
    given: dict[str, Any] = {"prune": {"steps": [FFN]}, "rebuild": {"profile": "free"}, "benchmark": SHORT} | more
    with pytest.raises(TrimlineError, match=said):
        preflight(checked_recipe(given), RunOptions(), Checkpoint(llama))


def test_a_recipe_for_openvino_without_openvino(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.openvino.runtime.has", lambda module: False)
    with pytest.raises(TrimlineError, match=r"^openvino is not installed\. "):
        look(llama, FFN, export={"format": "openvino"}, benchmark=SHORT | {"runtime": "openvino_genai"})


EXPERTS = {"method": "reap", "budget": {"expert": {"remove": 0.25}}}
OF_MIXTURES = [
    ({"rebuild": {"profile": "free"}}, EXPERTS, "'free' has no modelling file for mixtures"),
    ({"export": {"precision": "int8"}}, EXPERTS, "fp32 alone, and the export of this qwen3_moe asks for int8"),
    ({"export": {"lowering": "portable"}, "build": {"builder": "tensorrt_rtx"}}, EXPERTS, "mixtures were not tried|TensorRT"),
    ({"recover": {"lora": {"dropout": 0.1}}}, EXPERTS, "have no dropout"),
    ({}, {"method": "wanda", "budget": {"weight": {"remove": 0.5}}}, "most of a qwen3_moe are experts"),
    ({}, {"method": "laco", "budget": {"layer": {"keep": 3}}}, "walks through blocks of projections"),
    ({}, {"method": "magnitude", "target": {"parameters": 0.8, "spaces": ["kv_group"]}}, "Targets of mixtures are not met yet"),
    ({}, {"method": "reap", "budget": {"expert": {"keep": 1}}}, "1 experts in every block are too few"),
]


@pytest.mark.parametrize(("more", "step", "message"), OF_MIXTURES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_take_mixtures_is_said_before_anything_is_measured(
    tmp_path: Path, more: dict[str, Any], step: dict[str, Any], message: str
) -> None:
    folder = tiny_model("qwen3_moe", tmp_path)
    look(folder, EXPERTS, rebuild={"profile": "uniform"})
    with pytest.raises(TrimlineError, match=message):
        look(folder, step, **({"rebuild": {"profile": "uniform"}} | more))


def test_a_graph_that_gathers_more_experts_than_memory_holds(tmp_path: Path) -> None:
    folder = tiny_model("qwen3_moe", tmp_path)
    recipe = checked_recipe({"prune": {"steps": [EXPERTS]}, "rebuild": {"profile": "uniform"}, "benchmark": SHORT})
    with pytest.raises(TrimlineError, match=r"would gather .* of experts for 1,024 tokens.*Say export: null in the recipe"):
        preflight(recipe, RunOptions(memory=2 * 10**6), Checkpoint(folder))
    preflight(
        checked_recipe(recipe.model_dump(mode="json", exclude_unset=True) | {"export": None}),
        RunOptions(memory=2 * 10**6),
        Checkpoint(folder),
    )


@pytest.mark.parametrize(
    ("more", "what", "instead"),
    [
        (
            {"benchmark": SHORT | {"runtime": "onnxruntime_genai"}},
            "benchmark.runtime onnxruntime_genai",
            r"Say benchmark: {runtime: torch}",
        ),
        ({"benchmark": SHORT | {"runtime": "onnxruntime"}}, "benchmark.runtime onnxruntime", r"Say benchmark: {runtime: torch}"),
        (
            {"package": {"targets": ["onnxruntime-genai"]}},
            "package.targets onnxruntime-genai",
            "Leave package.targets onnxruntime-genai out",
        ),
        ({"build": {"builder": "tensorrt_rtx"}}, "build", "Leave build out"),
    ],
)
def test_what_reads_a_graph_where_the_recipe_makes_none(llama: Path, tmp_path: Path, more: dict[str, Any], what: str, instead: str) -> None:
    with pytest.raises(TrimlineError) as refused:
        look(llama, FFN, export=None, **more)
    assert refused.value.problem == f"{what} reads a graph, and the recipe makes none (export: null)."
    assert refused.value.remedy == f"{instead}, or leave export: null out."
    hybrid = tiny_model("lfm2", tmp_path)
    with pytest.raises(TrimlineError) as refused:
        look(hybrid, FFN, export=None, **more)
    assert refused.value.remedy == f"{instead}."  # no graph is made of it, whatever the recipe says


def test_a_recipe_without_a_graph_is_timed_in_torch(llama: Path, tmp_path: Path) -> None:
    look(llama, FFN, export=None)
    look(tiny_model("lfm2", tmp_path), FFN, export=None)
    recipe = checked_recipe({"prune": {"steps": [FFN]}, "export": None})
    assert recipe.benchmark.runtime == "torch"
    assert parse_recipe(recipe_text(recipe)) == recipe
    compiled = checked_recipe({"prune": {"steps": [FFN]}, "export": None, "benchmark": {"runtime": "torch_compile"}})
    assert compiled.benchmark.runtime == "torch_compile"


def test_a_model_without_graphs_is_refused_with_the_key_that_leaves_the_graph_out(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match=r"^No graph is made of youtu: .* Say export: null in the recipe"):
        look(tiny_model("youtu", tmp_path), FFN)


@pytest.mark.parametrize(("stated", "bytes_"), [({"dtype": "bfloat16"}, 2.0), ({"torch_dtype": "float32"}, 4.0), ({}, 4.0)])
def test_memory_is_counted_as_the_checkpoint_holds_it_where_nothing_is_exported(stated: dict[str, str], bytes_: float) -> None:
    recipe = checked_recipe({"prune": {"steps": [FFN]}, "export": None})
    consumer = consumer_of(recipe, None, stated)
    assert (consumer.weight_bytes, consumer.cache_bytes) == (bytes_, bytes_)
