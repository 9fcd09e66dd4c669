"""Which consumers load a result, why not, and what to change: the table of ``trimline inspect``.

Each rule was either seen to hold by running the consumer (docs/shape-profiles.md says which versions), or is taken
from its documentation or source; ``Verdict.checked`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.families import Sublayer
from pipeline.geometry import Geometry
from pipeline.rebuild.stock import has_sliding_window
from pipeline.recipe import Profile

Evidence = Literal["seen to run", "from its documentation"]
RAN: Evidence = "seen to run"
READ: Evidence = "from its documentation"
NO_BIAS = "compensate by least squares, which needs no new bias"


@dataclass(frozen=True)
class Verdict:
    """What one consumer does with a result.

    Attributes:
        consumer: its name.
        loads: whether it loads the result, in the form given in ``why``.
        why: how it loads it, or what it cannot express.
        change: what would make it load; empty where it does.
        checked: whether this was seen by running it.
    """

    consumer: str
    loads: bool
    why: str
    change: str
    checked: Evidence


@dataclass(frozen=True)
class Case:
    """What the rules look at."""

    result: Geometry
    profile: Profile
    config: Mapping[str, Any]

    @property
    def uniform(self) -> bool:
        return self.profile is Profile.UNIFORM

    @property
    def decilm(self) -> bool:
        return self.profile is Profile.DECILM

    @property
    def heads_fill_hidden(self) -> bool:
        """Whether hidden size = heads × head_dim, as some consumers assume."""
        result = self.result
        return result.blocks[0].kv_groups * result.queries_per_group * result.head_dim == result.hidden

    def seen_as(self, *families: str) -> Evidence:
        """Seen to run for ``families`` without biases; for others and with biases, its source says so."""
        family = self.result.family
        biased = any(self.result.has_bias(linear) for linear in family.linears)
        return RAN if family.model_type in families and not biased else READ

    @property
    def qwen3_output_bias(self) -> bool:
        """Whether a Qwen3 has a bias where published ones have none, and some consumers know none."""
        family = self.result.family
        return family.model_type == "qwen3" and self.result.has_bias(family.reader(Sublayer.ATTENTION))


def consumers(result: Geometry, profile: Profile, config: Mapping[str, Any]) -> list[Verdict]:
    """One verdict per consumer.

    Args:
        result: sizes of the smaller model.
        profile: the shape profile it is written in.
        config: the config.json of the dense model (the smaller one's serves as well).
    """
    case = Case(result, profile, config)
    rules: tuple[Callable[[Case], Verdict], ...] = (_stock, _shipped, _onnx, _genai, _tensorrt, _vllm, _llama_cpp, _optimum)
    return [rule(case) for rule in rules]


def _stock(case: Case) -> Verdict:
    name = "transformers (stock)"
    if case.uniform:
        return Verdict(name, True, "the stock classes load it; no remote code", "", RAN)
    change = "use profile 'uniform', with all blocks alike"
    return Verdict(name, False, "the stock classes know one size for all blocks", change, RAN)


def _shipped(case: Case) -> Verdict:
    name = "transformers (shipped file)"
    if case.uniform:
        return Verdict(name, True, "needs none: the stock classes load it", "", RAN)
    return Verdict(name, True, "with trust_remote_code=True, by the modelling file in the folder", "", RAN)


def _onnx(case: Case) -> Verdict:
    return Verdict("ONNX Runtime", True, "as exported ONNX, whose shapes are fixed block by block", "", RAN)


def _genai(case: Case) -> Verdict:
    graph = "portable graph (its builder has no class for this family)" if case.result.family.onnx_builder is None else "fused graph"
    return Verdict("onnxruntime-genai", True, f"as the {graph}, whose inputs tell it each block's KV heads", "", RAN)


def _tensorrt(case: Case) -> Verdict:
    return Verdict("TensorRT", True, "parses the portable graph, whose shapes are fixed block by block", "", READ)


def _vllm(case: Case) -> Verdict:
    name, family = "vLLM", case.result.family
    if case.decilm:
        evidence = case.seen_as("llama")
        return Verdict(name, True, "natively, as DeciLMForCausalLM; trust_remote_code for the config", "", evidence)
    if not case.uniform:
        return Verdict(name, False, "it has no class with free sizes per block", _towards_decilm(case), READ)
    if case.qwen3_output_bias:
        return Verdict(name, False, "its Qwen3 class has no bias on the output projection, and skips it without a word", NO_BIAS, READ)
    if family.decilm == "qkv_bias" and not case.heads_fill_hidden:
        why = f"its {family.class_prefix} class takes hidden size / heads for head_dim"
        return Verdict(name, False, why, "use profile 'decilm', or keep all KV groups", READ)
    return Verdict(name, True, "natively, as any model of its architecture", "", case.seen_as("llama"))


def _llama_cpp(case: Case) -> Verdict:
    name, family = "llama.cpp", case.result.family
    if family.gguf_arch is None:
        return Verdict(name, False, f"it has no architecture for {family.model_type}", "serve it with another runtime", READ)
    if case.uniform and family.gguf_square and not case.heads_fill_hidden:
        return Verdict(name, False, f"its {family.gguf_arch} takes hidden size / heads for head_dim", "keep all KV groups", READ)
    if case.uniform and case.qwen3_output_bias:
        return Verdict(name, False, "its architecture qwen3 has no bias on the output projection", NO_BIAS, READ)
    if case.uniform:
        return Verdict(name, True, f"as GGUF architecture {family.gguf_arch}", "", case.seen_as("llama", "mistral"))
    if family.decilm is None:
        why = f"only its architecture deci has sizes per block, and it computes as Llama, not as {family.model_type}"
        return Verdict(name, False, why, "use profile 'uniform'", READ)
    if not case.decilm:
        return Verdict(name, False, "its converter knows no model type of profile 'free'", _towards_decilm(case), READ)
    return _deci(case, name)


def _deci(case: Case, name: str) -> Verdict:
    for number, block in enumerate(case.result.blocks):
        if block.kv_groups and not block.ffn:
            why = f"its deci silently skips the attention of a block without FFN (block {number})"
            return Verdict(name, False, why, f"keep some FFN channels in block {number}, or drop its attention too", RAN)
    evidence = case.seen_as("llama")
    return Verdict(name, True, "as GGUF architecture deci, with sizes per block", "", evidence)


def _optimum(case: Case) -> Verdict:
    name = "optimum-onnx"
    if case.uniform:
        why = "in an environment of its own: it needs transformers below 4.58"
        return Verdict(name, True, why, "", case.seen_as("llama"))
    why = "it needs transformers below 4.58, which cannot read the config class in the folder"
    return Verdict(name, False, why, "use profile 'uniform', or run the ONNX with ONNX Runtime itself", RAN)


def _towards_decilm(case: Case) -> str:
    """What stands between a ``free`` result and ``decilm``."""
    result = case.result
    if result.family.decilm is None or has_sliding_window(result.family, case.config):
        return "use profile 'uniform', with all blocks alike"
    needs = []
    if len({block.kv_groups for block in result.blocks if block.kv_groups}) > 1:
        needs.append("the same KV groups in every block")
    if not result.blocks[0].kv_groups:
        needs.append("attention in the first block")
    return "use profile 'decilm'" + (f", with {' and '.join(needs)}" if needs else "; these sizes fit it")
