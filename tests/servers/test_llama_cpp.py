"""Our GGUF files in llama.cpp itself: what it computes, and its OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.verify import verify
from exporters.gguf import child
from exporters.gguf.files import MODEL, write_gguf
from exporters.gguf.gate import gate_llama_cpp
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from pipeline.architecture.families import FAMILIES
from pipeline.architecture.gguf.archs import GGUF_ARCHS
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.rebuild.gguf_form import DECI, gguf_form
from tests.exporters.gguf.test_architectures import FULL, PLAIN, WRITABLE, WRITTEN, YARN, by_kind
from tests.exporters.gguf.test_mixtures import WRITABLE as MIXTURES_WRITABLE
from tests.exporters.gguf.test_mixtures import WRITTEN as MIXTURES_WRITTEN
from tests.exporters.gguf.test_mixtures import five_experts
from tests.exporters.gguf.test_tokenizer import sentencepiece
from tests.exporters.models import ATTENTION_FIRST_GONE, KV_GROUPS, stock, uneven
from tests.pipeline.rebuild.cases import Choice, fewer_blocks, fewer_experts, fewer_groups, rebuilt_tiny, same_width
from tests.servers.models import pruned
from tests.servers.packages import answering, completion, packaged, says_what_the_checkpoint_says
from tests.servers.places import environment
from tests.tiny import tiny_model

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]
OPTIONS = RunOptions(threads=1)
PROMPTS = ("The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):")
CONTEXT = 256
MADE = ".made-0.3.36"
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


WINDOW = ["sliding_attention"] * 4
OWN_WIDTH = ("glm4_moe", "qwen2_moe")  # configs with a width of experts beside that of the FFN
EIGHT_HEADS = {"num_attention_heads": 8, "query_pre_attn_scalar": 8}


@pytest.fixture(autouse=True)
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> Path:
    python = environment("llama_cpp", MADE) / "bin/python"
    monkeypatch.setenv(child.VARIABLE, str(python))
    return python


@pytest.fixture(scope="module", params=["uniform", "decilm"])
def checkpoint(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment("llama_cpp", MADE)
    return pruned(smollm2, tmp_path_factory.mktemp(request.param), Profile(request.param))


def exported(checkpoint: Path, out: Path, **recipe: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    export_gguf(checkpoint, GgufSlice(**recipe), OPTIONS, out, Events())
    gate = read_json(out / "gate.json")
    assert gate["llama.cpp"]["run"]
    print(f"\n{checkpoint.parent.name} {recipe}: {json.dumps(gate['llama.cpp'])}")
    return gate


# --- every family, tiny ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITTEN)
def test_every_type(tmp_path: Path, name: str) -> None:
    """Four random blocks each; windows, multipliers, trained activations and parts of heads that turn are switched on where a type has them."""
    model = tiny_model(name, tmp_path / name, **WRITABLE.get(name, {}))
    exported(model, tmp_path / "out", precision="fp32")


@pytest.mark.parametrize("name", MIXTURES_WRITTEN)
def test_every_mixture(tmp_path: Path, name: str) -> None:
    """Four random blocks of eight experts; in GLM-4.5 the first is dense, and gpt-oss has a window in every other block."""
    exported(tiny_model(name, tmp_path / name, **MIXTURES_WRITABLE.get(name, {})), tmp_path / "out", precision="fp32")


MIXTURE_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "groups, a scale, two dense blocks": (
        "glm4_moe",
        {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "first_k_dense_replace": 2},
    ),
    "weights that are not divided": ("glm4_moe", {"norm_topk_prob": False}),
    "all experts for every token": ("qwen3_moe", {"num_experts_per_tok": 8}),
    "one expert for every token": ("mixtral", {"num_experts_per_tok": 1}),
    "a part of heads that turns": ("minimax_m2", {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}),
    "a table for a head": ("qwen2_moe", {"tie_word_embeddings": True}),
    "gpt-oss without YaRN": ("gpt_oss", {"rope_parameters": PLAIN}),
    "llama3 and Granite": ("granitemoe", {"rope_parameters": LLAMA3, "attention_multiplier": 0.2, "attention_bias": True}),
}


@pytest.mark.parametrize("variant", MIXTURE_VARIANTS)
def test_what_else_a_mixture_expresses(tmp_path: Path, variant: str) -> None:
    name, overrides = MIXTURE_VARIANTS[variant]
    exported(tiny_model(name, tmp_path / name, **(MIXTURES_WRITABLE.get(name, {}) | overrides)), tmp_path / "out", precision="fp32")


@pytest.mark.parametrize("choose", [fewer_experts, five_experts], ids=["six", "five"])
@pytest.mark.parametrize("name", MIXTURES_WRITTEN)
def test_pruned_mixtures(tmp_path: Path, name: str, choose: Any) -> None:
    """Six or five of eight experts in every block, other ones in each."""
    folder = rebuilt_tiny(tmp_path, name, choose, Profile.UNIFORM, **MIXTURES_WRITABLE.get(name, {}))
    exported(folder, tmp_path / "gguf", precision="fp32")


@pytest.mark.parametrize("recipe", [{"precision": "fp16"}, {"precision": "bf16"}, {"quantise": "q8_0"}, {"quantise": "q4_k_m"}], ids=str)
@pytest.mark.parametrize("name", ["glm4_moe", "gpt_oss", "mixtral", "qwen2_moe"])
def test_mixtures_in_fewer_bits(tmp_path: Path, name: str, recipe: dict[str, Any]) -> None:
    """Whether llama.cpp computes with them at all. The models are random, so that rounding sends many tokens to other experts: it says
    nothing of what bits cost, and 8 bits go beyond the bar of trained models."""
    wide = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256} | ({"moe_intermediate_size": 256} if name in OWN_WIDTH else {})
    wide |= {"shared_expert_intermediate_size": 256} if name == "qwen2_moe" else {}
    model = tiny_model(name, tmp_path / name, **(MIXTURES_WRITABLE.get(name, {}) | wide))
    gate = exported(model, tmp_path / "out", **recipe, perplexity_bar=1.25 if "quantise" in recipe else None)
    assert not gate.get("types", {}).get("other")


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "yarn": ("qwen3", {"rope_parameters": YARN}),
    "yarn with a factor of its own": ("llama", {"rope_parameters": YARN | {"attention_factor": 1.5}}),
    "yarn with a ramp of its own": (
        "ministral3",
        {"rope_parameters": YARN | {"beta_fast": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.1}},
    ),
    "yarn beside windows": ("olmo3", by_kind(PLAIN, YARN)),
    "alpha": ("hunyuan_v1_dense", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}}),
    "a head where there is a table": ("olmo2", {"tie_word_embeddings": True}),
    "a head of its own": ("gemma3_text", {"tie_word_embeddings": False}),
    "windows at 64 blocks": ("exaone4", {"num_hidden_layers": 64, "sliding_window": 16, "layer_types": [*WINDOW[:3], *FULL[:1]] * 16}),
    "hidden over heads at 46 blocks": ("gemma2", {"num_hidden_layers": 46, "layer_types": (WINDOW[:1] + FULL[:1]) * 23, **EIGHT_HEADS}),
    "llama3 and granite": ("granite", {"rope_parameters": LLAMA3}),
    "heads that do not fill the stream": ("gemma2", {"num_attention_heads": 2, "num_key_value_heads": 1}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_else_an_architecture_expresses(tmp_path: Path, variant: str) -> None:
    name, overrides = VARIANTS[variant]
    exported(tiny_model(name, tmp_path / name, **(WRITABLE.get(name, {}) | overrides)), tmp_path / "out", precision="fp32")


@pytest.mark.parametrize("name", ["gemma3_text", "cohere2", "granite", "apertus", "phi", "stablelm"])
def test_smaller_models(tmp_path: Path, name: str) -> None:
    """Of four blocks the second goes: what stands for each block goes with it."""

    def choose(choice: Choice) -> None:
        same_width(choice)
        if not GGUF_ARCHS[str(FAMILIES[name].gguf_arch)].square:
            fewer_groups(choice)
        fewer_blocks(choice)

    assert exported(rebuilt_tiny(tmp_path, name, choose, Profile.UNIFORM), tmp_path / "gguf", precision="fp32")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("kv_groups", [KV_GROUPS, ATTENTION_FIRST_GONE], ids=["first", "no attention first"])
def test_uneven_blocks(tmp_path: Path, family: str, kv_groups: tuple[int, ...]) -> None:
    """Without FFN, without attention, three widths, two numbers of KV groups: zeros stand where deci would go wrong."""
    assert exported(uneven(family, tmp_path, kv_groups), tmp_path / "out", precision="fp32")["architecture"] == DECI


def test_qwen2_with_fewer_heads_is_deci(tmp_path: Path) -> None:
    folder = rebuilt_tiny(tmp_path, "qwen2", fewer_groups, Profile.UNIFORM)
    assert exported(folder, tmp_path / "gguf", precision="fp32")["architecture"] == DECI


def test_qwen3_with_fewer_heads(tmp_path: Path) -> None:
    assert exported(rebuilt_tiny(tmp_path, "qwen3", fewer_groups, Profile.UNIFORM), tmp_path / "gguf", precision="fp32")


def test_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = stock("llama", tmp_path, vocab_size=300)
    PreTrainedTokenizerFast(tokenizer_object=sentencepiece(), bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    exported(folder, tmp_path / "out", precision="fp32")


def test_heads_in_the_order_of_transformers_fail_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.gguf.tensors.ROTATED", ())
    source = Checkpoint(stock("llama", tmp_path))
    write_gguf(source, gguf_form(source.geometry, source.config), "fp32", tmp_path / MODEL, Events())
    with pytest.raises(GateError, match="llama.cpp"):
        gate_llama_cpp(source, gguf_form(source.geometry, source.config), GgufSlice(precision="fp32"), tmp_path / MODEL, OPTIONS, Events())


# --- SmolLM2, pruned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pruned_smollm2(tmp_path: Path, checkpoint: Path, precision: str) -> None:
    gate = exported(checkpoint, tmp_path / "out", precision=precision)
    assert gate["architecture"] == ("deci" if "block_configs" in Checkpoint(checkpoint).config else "llama")


@pytest.mark.parametrize(("kind", "share"), [("q8_0", 0.28), ("q4_k_m", 0.2)])
def test_quantised_by_llama_cpp(tmp_path: Path, smollm2: Path, kind: str, share: float) -> None:
    """The dense model: what quantising costs is best seen where nothing else was done."""
    within_its_bar(smollm2, tmp_path / "out", share, quantise=kind)


@pytest.mark.parametrize(("kind", "share", "bar"), [("q8_0", 0.3, 1.05), ("q4_k_m", 0.23, None)])
def test_an_uneven_model_quantised_by_llama_cpp(tmp_path: Path, smollm2: Path, kind: str, share: float, bar: float | None) -> None:
    """``deci``, with a block without attention and one without FFN; the embedding, which keeps more bits, is more of it.

    In 8 bits it is as far from itself as a whole model (0.012 nats), but its perplexity moves more: 1.028 times, where the default bar is 1.02.
    """
    gate = within_its_bar(pruned(smollm2, tmp_path, Profile.DECILM), tmp_path / "gguf", share, quantise=kind, perplexity_bar=bar)
    assert gate["architecture"] == DECI


def within_its_bar(checkpoint: Path, out: Path, share: float, **recipe: Any) -> dict[str, Any]:
    """Perplexity over the checkpoint's is below the bar of that many bits, and the file has at most ``share`` of its bytes."""
    gate = exported(checkpoint, out, **recipe)
    assert gate["llama.cpp"]["perplexity ratio"] < GgufSlice(**recipe).most_perplexity
    assert (out / MODEL).stat().st_size < share * (checkpoint / "model.safetensors").stat().st_size
    return gate


# --- its server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(checkpoint: Path, llama_cpp: Path, tmp_path: Path) -> Iterator[str]:
    """The package's own start.sh, with the environment's programs before others."""
    package = packaged(tmp_path, checkpoint, "llama.cpp", gguf=GgufSlice(precision="fp32"))
    # An fp32 cache, as torch has; the server's own default rounds it to fp16.
    flags = ["--n_ctx", str(CONTEXT), "--n_threads", "2", "--type_k", "0", "--type_v", "0"]
    with answering(package, "llama.cpp", llama_cpp.parent, tmp_path / "server.log", *flags) as address:
        yield address
    assert verify(package) == []


def completed(address: str, prompt: Any, tokens: Any = 24) -> requests.Response:
    return completion(address, prompt, tokens, repeat_penalty=1.0)


def test_64_requests_at_once_get_what_each_gets_alone(server: str) -> None:
    """This server answers one after the other; none may be cut short or get another's text."""
    asked = [(f"{PROMPTS[number % 3]} {number}", 4 + number % 5) for number in range(64)]
    alone = [completed(server, *one) for one in asked]
    with ThreadPoolExecutor(len(asked)) as clients:
        together = list(clients.map(lambda one: completed(server, *one), asked))
    for (_, tokens), single, found in zip(asked, alone, together, strict=True):
        assert (single.status_code, found.status_code) == (200, 200), found.text
        [wanted], [choice] = single.json()["choices"], found.json()["choices"]
        assert choice == wanted
        assert found.json()["usage"] == single.json()["usage"]
        # It counts tokens while a character is unfinished, and looks at max_tokens only after it.
        assert choice["finish_reason"] == "stop" or found.json()["usage"]["completion_tokens"] >= tokens
    assert len({answer.json()["choices"][0]["text"] for answer in together}) > 8  # not one text for all


def test_the_server_says_what_the_checkpoint_says_and_survives_bad_input(server: str, checkpoint: Path) -> None:
    says_what_the_checkpoint_says(server, checkpoint, PROMPTS, 24, repeat_penalty=1.0)
    before = completed(server, PROMPTS[-1])
    sentence = "The boy counted twelve gulls and three hundred nets. "
    bad: dict[str, Any] = {
        "too long": completed(server, sentence * 100),
        "10 MB": completed(server, sentence * (10 * 2**20 // len(sentence))),
        "a number": completed(server, 5),
        "an object": completed(server, {"text": "x"}),
        "tokens that are words": completed(server, "x", "many"),  # type: ignore[arg-type]
        "no JSON": requests.post(f"{server}/v1/completions", data=b"{", timeout=60),
        "no prompt at all": requests.post(f"{server}/v1/completions", json={"max_tokens": "x"}, timeout=60),
    }
    print({name: (answer.status_code, answer.text[:160]) for name, answer in bad.items()})
    assert {bad[name].status_code for name in ("too long", "10 MB")} == {400}
    assert "maximum context length is 256" in bad["10 MB"].json()["error"]["message"]
    # This server answers what its own validation refuses with 500 and the reasons, and what is no JSON with 500 alone.
    assert all(400 <= answer.status_code <= 500 for answer in bad.values())
    for name in ("a number", "an object", "tokens that are words", "no prompt at all"):
        assert "validation error" in bad[name].json()["error"]["message"]
    assert completed(server, "").status_code == 500  # SmolLM2 puts nothing before a text, and llama-cpp-python samples from nothing
    again = completed(server, PROMPTS[-1])
    assert again.status_code == 200
    assert again.json()["choices"][0]["text"] == before.json()["choices"][0]["text"]
