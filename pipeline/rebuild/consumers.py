"""Which consumers load a result, why not, and what to change: the table of ``trimline inspect``.

Each rule was either seen to hold by running the consumer (docs/shape-profiles.md says which versions), or is taken
from its documentation or source; ``ConsumerVerdict.checked`` says which. What has never been run here, for any model, is "not run".
A rule holds for the families that ``ROWS`` names; of every other one nobody knows, and nothing is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.architecture.families import FAMILIES, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import no_graph
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.stock import has_sliding_window
from pipeline.rebuild.gguf_form import DECI, NoGgufForm, gguf_form, rope_type
from pipeline.rebuild.verdicts import NOT_LOOKED_AT, NOT_RUN, RAN, READ, ConsumerInput, ConsumerVerdict

NO_BIAS = "compensate by least squares, which needs no new bias"
UNIFORM = "use profile 'uniform', with all blocks alike"
EDGE_LLM = ("llama", "qwen2", "qwen3")
LENGTH_SWITCHED = ("longrope", "su")  # the old spelling too
# Types whose exports passed their gate in ONNX Runtime (tests/exporters/onnx/lowering: test_types.py, test_mixtures.py), fused, portable or both.
IN_ONNX_RUNTIME = frozenset(
    (
        "apertus",
        "arcee",
        "cohere",
        "cohere2",
        "cwm",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt_oss",
        "granite",
        "granitemoe",
        "helium",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "jais2",
        "llama",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "vaultgemma",
    )
)
IN_OPENVINO = frozenset(name for name in IN_ONNX_RUNTIME if FAMILIES[name].mixture is None)  # tests/exporters/openvino runs these
FIRST = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "opt"})  # the families that rules of servers were written for
READS_FOLDERS = ("TensorRT-LLM", "TensorRT Edge-LLM", "vLLM", "SGLang", "optimum-onnx")


def consumers(result: Geometry, profile: Profile, config: Mapping[str, Any]) -> list[ConsumerVerdict]:
    """One verdict per consumer.

    Args:
        result: sizes of the smaller model.
        profile: the shape profile it is written in.
        config: the config.json of the dense model (the smaller one's serves as well).
    """
    case = ConsumerInput(result, profile, config)
    verdicts = [_verdict(row, case) for row in ROWS]
    return verdicts if result.within is None else [_of_larger_model(verdict, result.within.model_type) for verdict in verdicts]


def _verdict(row: ConsumerRule, case: ConsumerInput) -> ConsumerVerdict:
    if row.graph and (why := no_graph(case.result.family)):
        return ConsumerVerdict(row.consumer, False, f"no graph is made of it: {why}", "use the checkpoint with transformers", NOT_RUN)
    return row.rule(case) if row.knows(case) else _not_looked_at(row.consumer, case, row.gated)


def _of_larger_model(verdict: ConsumerVerdict, kind: str) -> ConsumerVerdict:
    """What a verdict on a language model is worth where its folder is a larger model's."""
    if verdict.consumer in READS_FOLDERS:
        why = f"how it loads a {kind} with other sizes was not looked at"
        return replace(verdict, loads=None, why=why, change="export its language model to ONNX or GGUF", checked=NOT_LOOKED_AT)
    if verdict.consumer.startswith("transformers"):
        return replace(verdict, why=f"AutoModelForImageTextToText loads it, images and all: {verdict.why}")
    return replace(verdict, why=f"its language model alone, without images: {verdict.why}")


def _not_looked_at(name: str, case: ConsumerInput, gated: bool) -> ConsumerVerdict:
    why = f"nobody has looked at what it does with {case.result.family.model_type}, so nothing is promised"
    change = "export it: the gate runs it, or says why not" if gated else "try it there before you rely on it"
    return ConsumerVerdict(name, None, why, change, NOT_LOOKED_AT, gated)


def _stock(case: ConsumerInput) -> ConsumerVerdict:
    name = "transformers (stock)"
    if case.uniform:
        return ConsumerVerdict(name, True, "the stock classes load it; no remote code", "", RAN)
    return ConsumerVerdict(name, False, "the stock classes know one size for all blocks", UNIFORM, RAN)


def _shipped(case: ConsumerInput) -> ConsumerVerdict:
    name = "transformers (shipped file)"
    if case.uniform:
        return ConsumerVerdict(name, True, "needs none: the stock classes load it", "", RAN)
    return ConsumerVerdict(name, True, "with trust_remote_code=True, by the modelling file in the folder", "", RAN)


def _onnx(case: ConsumerInput) -> ConsumerVerdict:
    return ConsumerVerdict("ONNX Runtime", True, "as exported ONNX, whose shapes are fixed block by block", "", RAN)


def _genai(case: ConsumerInput) -> ConsumerVerdict:
    graph = "fused graph"
    if case.result.family.onnx_builder is None:
        graph = "portable graph (its builder has no class for this family)"
    elif rope_type(case.config) in LENGTH_SWITCHED:
        graph = "portable graph (the fused one ends where this rotary embedding turns other angles)"
    return ConsumerVerdict("onnxruntime-genai", True, f"as the {graph}, whose inputs tell it each block's KV heads", "", RAN)


def _openvino(case: ConsumerInput) -> ConsumerVerdict:
    if rope_type(case.config) == "dynamic":
        why = "no trace can be made of a rotary embedding of type 'dynamic'"
        return ConsumerVerdict("OpenVINO GenAI", False, why, "use ONNX Runtime, for which the fused graph is right", RAN)
    return ConsumerVerdict("OpenVINO GenAI", True, "as exported with format openvino, whose states have each block's KV heads", "", RAN)


def _tensorrt(case: ConsumerInput) -> ConsumerVerdict:
    if rope_type(case.config) == "dynamic":
        why = "no portable graph can be made of a rotary embedding of type 'dynamic'"
        return ConsumerVerdict("TensorRT", False, why, "use ONNX Runtime, for which the fused graph is right", RAN)
    return ConsumerVerdict("TensorRT", True, "parses the portable graph, whose shapes are fixed block by block", "", READ)


def _tensorrt_llm(case: ConsumerInput) -> ConsumerVerdict:
    name, family = "TensorRT-LLM", case.result.family
    if not case.uniform:
        why = "its class for sizes per block reads FFN widths as a multiplier in steps of 256, which these folders do not state"
        return ConsumerVerdict(name, False, why, UNIFORM, NOT_RUN)
    if family.model_type == "opt":
        return ConsumerVerdict(name, False, "its PyTorch backend lists no opt", "serve it with another runtime", NOT_RUN)
    return ConsumerVerdict(name, True, "as any model of its architecture, by the PyTorch backend", "", NOT_RUN)


def _edge_llm(case: ConsumerInput) -> ConsumerVerdict:
    name, family = "TensorRT Edge-LLM", case.result.family
    if family.model_type not in EDGE_LLM:
        return ConsumerVerdict(
            name, False, f"its list of supported models has no {family.model_type}", "serve it with another runtime", NOT_RUN
        )
    if not case.uniform:
        return ConsumerVerdict(name, False, "it lists the stock architectures, which have one size for all blocks", UNIFORM, NOT_RUN)
    if case.becomes_mistral:
        why = "a Llama with this many heads is written as mistral, which its list of supported models does not have"
        return ConsumerVerdict(name, False, why, "keep a number of heads that divides the hidden size", NOT_RUN)
    return ConsumerVerdict(name, True, "as any model of its architecture", "", NOT_RUN)


def _sglang(case: ConsumerInput) -> ConsumerVerdict:
    name, family = "SGLang", case.result.family
    if not case.uniform:
        why = "its DeciLM class reads FFN widths as a multiplier in steps of 256, which these folders do not state"
        return ConsumerVerdict(name, False, why, UNIFORM, NOT_RUN)
    if family.decilm == "qkv_bias" and not case.heads_fill_hidden:
        why = f"its {family.class_prefix} class takes hidden size / heads for head_dim"
        return ConsumerVerdict(name, False, why, "keep all KV groups", NOT_RUN)
    if family.model_type == "llama" and any(linear.sublayer is Sublayer.FFN and case.result.has_bias(linear) for linear in family.linears):
        return ConsumerVerdict(name, False, "its Llama class has no biases in the FFN, and skips them without a word", NO_BIAS, NOT_RUN)
    return ConsumerVerdict(name, True, "as any model of its architecture", "", NOT_RUN)


def _vllm(case: ConsumerInput) -> ConsumerVerdict:
    name, family = "vLLM", case.result.family
    if case.decilm:
        evidence = case.seen_as("llama")
        return ConsumerVerdict(name, True, "natively, as DeciLMForCausalLM; trust_remote_code for the config", "", evidence)
    if not case.uniform:
        return ConsumerVerdict(name, False, "it has no class with free sizes per block", _towards_decilm(case), READ)
    if case.qwen3_output_bias:
        return ConsumerVerdict(
            name, False, "its Qwen3 class has no bias on the output projection, and skips it without a word", NO_BIAS, READ
        )
    if family.decilm == "qkv_bias" and not case.heads_fill_hidden:
        why = f"its {family.class_prefix} class takes hidden size / heads for head_dim"
        return ConsumerVerdict(name, False, why, "use profile 'decilm', or keep all KV groups", READ)
    return ConsumerVerdict(name, True, "natively, as any model of its architecture", "", case.seen_as("llama"))


def _llama_cpp(case: ConsumerInput) -> ConsumerVerdict:
    name = "llama.cpp"
    try:
        form = gguf_form(case.result, case.config)
    except NoGgufForm as obstacle:
        return ConsumerVerdict(name, False, _clause(obstacle.problem), _clause(obstacle.remedy), READ)
    sizes = ", with sizes per block" if form.arch == DECI and len(set(form.blocks)) > 1 else ""
    bounded = form.settings.window and not form.windowed
    window = ", as far as its sliding window reaches" if bounded else ""
    return ConsumerVerdict(name, True, f"as GGUF architecture {form.arch}{sizes}{window}", "", READ if case.result.biases else RAN)


def _clause(sentence: str) -> str:
    """A sentence as the table has it."""
    return (sentence if sentence.startswith("llama.cpp") else sentence[0].lower() + sentence[1:]).rstrip(".")


def _optimum(case: ConsumerInput) -> ConsumerVerdict:
    name = "optimum-onnx"
    if case.uniform and not case.heads_fill_hidden:
        why = "it takes hidden size / heads for a head's width, whatever head_dim the config states"
        return ConsumerVerdict(
            name, False, why, "keep heads and residual dimensions, or run the ONNX with ONNX Runtime itself", case.seen_as("llama")
        )
    if case.uniform:
        why = "in an environment of its own: it needs transformers below 4.58"
        return ConsumerVerdict(name, True, why, "", case.seen_as("llama"))
    why = "it needs transformers below 4.58, which cannot read the config class in the folder"
    return ConsumerVerdict(name, False, why, "use profile 'uniform', or run the ONNX with ONNX Runtime itself", RAN)


def _towards_decilm(case: ConsumerInput) -> str:
    """What stands between a ``free`` result and ``decilm``."""
    result = case.result
    if result.family.decilm is None or has_sliding_window(result.family, case.config):
        return UNIFORM
    needs = []
    if len({block.kv_groups for block in result.blocks if block.kv_groups}) > 1:
        needs.append("the same KV groups in every block")
    if not result.blocks[0].kv_groups:
        needs.append("attention in the first block")
    return "use profile 'decilm'" + (f", with {' and '.join(needs)}" if needs else "; these sizes fit it")


@dataclass(frozen=True)
class ConsumerRule:
    """A line of the table.

    Attributes:
        consumer: its name.
        rule: what it does with a result.
        families: whose results somebody has looked at; None for all, since the rule looks at each.
        gated: as in the verdict.
        graph: it is given an ONNX graph.
        decilm: it was looked at with results in profile ``decilm``, whichever family they are of.
    """

    consumer: str
    rule: Callable[[ConsumerInput], ConsumerVerdict]
    families: frozenset[str] | None = FIRST
    gated: bool = False
    decilm: bool = False
    graph: bool = False

    def knows(self, case: ConsumerInput) -> bool:
        """Whether the rule says something of the case."""
        return self.families is None or case.result.family.model_type in self.families or (self.decilm and case.decilm)


ROWS = (
    ConsumerRule("transformers (stock)", _stock, None),  # tests/pipeline/architecture runs every family in both
    ConsumerRule("transformers (shipped file)", _shipped, None),
    ConsumerRule("ONNX Runtime", _onnx, IN_ONNX_RUNTIME, gated=True, graph=True),
    ConsumerRule("onnxruntime-genai", _genai, IN_ONNX_RUNTIME, gated=True, graph=True),
    ConsumerRule("OpenVINO GenAI", _openvino, IN_OPENVINO, gated=True, graph=True),
    ConsumerRule("TensorRT", _tensorrt, gated=True, graph=True),
    ConsumerRule("TensorRT-LLM", _tensorrt_llm),
    ConsumerRule("TensorRT Edge-LLM", _edge_llm),
    ConsumerRule("vLLM", _vllm, decilm=True),
    ConsumerRule("SGLang", _sglang),
    ConsumerRule("llama.cpp", _llama_cpp, None),  # its table of architectures says what each computes; tests/servers runs them
    ConsumerRule("optimum-onnx", _optimum),
)
