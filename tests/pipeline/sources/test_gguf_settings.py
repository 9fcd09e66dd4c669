"""A GGUF file as a source: what changes numbers and is not in the config that transformers makes of it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporters.gguf import child
from exporters.gguf.files import MODEL
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.sources.config import named_model
from pipeline.sources.model import source
from pipeline.sources.recipe import ModelSlice
from tests.tiny import tiny_model

HIDDEN, WIDTH, WORDS, HEADS, GROUPS, BLOCKS = 64, 96, 48, 4, 2, 2
WIDE = 256  # of a Gemma 2: what its class scales attention by, which no key of a file says
Change = Callable[[gguf.GGUFWriter], None]


HEAD = 16


def written(path: Path, kind: str, change: Change, head: int = 0) -> ModelSlice:
    """A small file of a Llama or a Gemma 2, and what is changed in it."""
    head = head or (WIDE if kind == "gemma2" else HEAD)
    writer, random = gguf.GGUFWriter(path, kind), np.random.default_rng(0)
    writer.add_block_count(BLOCKS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{number}" for number in range(WORDS)])
    norms = ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if kind == "gemma2" else ()))
    parts = {
        "attn_q": (HEADS * head, HIDDEN),
        "attn_k": (GROUPS * head, HIDDEN),
        "attn_v": (GROUPS * head, HIDDEN),
        "attn_output": (HIDDEN, HEADS * head),
        "ffn_gate": (WIDTH, HIDDEN),
        "ffn_up": (WIDTH, HIDDEN),
        "ffn_down": (HIDDEN, WIDTH),
        **dict.fromkeys(norms, (HIDDEN,)),
    }
    shapes = {f"blk.{block}.{name}": shape for block in range(BLOCKS) for name, shape in parts.items()}
    shapes |= {"token_embd": (WORDS, HIDDEN), "output_norm": (HIDDEN,)} | ({"output": (WORDS, HIDDEN)} if kind == "llama" else {})
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ModelSlice(source=str(path))


def factors(value: float) -> Change:
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.full(HEAD // 2, value, np.float32))


def scaled(kind: gguf.RopeScalingType, by: float) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(by)

    return change


def caps(attention: float, final: float) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_attn_logit_softcapping(attention)
        writer.add_final_logit_softcapping(final)

    return change


PASSED: dict[str, tuple[str, Change]] = {
    "as it is": ("llama", lambda writer: None),
    "a base that is read": ("llama", lambda writer: writer.add_rope_freq_base(5e5)),
    "factors of one, as older converters wrote them": ("llama", factors(1.0)),
    "no scaling, said": ("llama", scaled(gguf.RopeScalingType.NONE, 1.0)),
    "no window, as Phi-4's files say it": ("llama", lambda writer: writer.add_sliding_window(0)),
    "a multiplier of one": ("llama", lambda writer: writer.add_logit_scale(1.0)),
    "the caps that the class has": ("gemma2", caps(50.0, 30.0)),
    "windows where the class has them": ("gemma2", lambda writer: writer.add_sliding_window_pattern([True, False])),
    "the same as a number": ("gemma2", lambda writer: writer.add_sliding_window_pattern(2)),
}
REFUSED: dict[str, tuple[str, Change, str]] = {
    "factors of Llama 3.1": ("llama", factors(8.0), "a tensor rope_freqs.weight"),
    "linear": (
        "llama",
        scaled(gguf.RopeScalingType.LINEAR, 4.0),
        r"llama.rope.scaling.type = linear \(the config has none\), llama.rope.scaling.factor = 4 \(the config has 1\)",
    ),
    "a window": ("llama", lambda writer: writer.add_sliding_window(64), r"llama.attention.sliding_window = 64 \(the config has 0\)"),
    "a multiplier": ("llama", lambda writer: writer.add_embedding_scale(12.0), "llama.embedding_scale = 12"),
    "a key of tomorrow": ("llama", lambda writer: writer.add_float32("llama.attention.sharpness", 2.0), "llama.attention.sharpness = 2"),
    "a scale of attention": ("llama", lambda writer: writer.add_attention_scale(0.5), "llama.attention.scale = 0.5"),
    "other caps": ("gemma2", caps(20.0, 30.0), r"gemma2.attn_logit_softcapping = 20 \(the config has 50\)"),
    "other windows": ("gemma2", lambda writer: writer.add_sliding_window_pattern([False, True]), "sliding_window_pattern"),
    "a bias": (
        "llama",
        lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.ones(HEADS * HEAD, np.float32)),
        "lists 22 tensors, .* makes 21",
    ),
    "factors for long texts": (
        "llama",
        lambda writer: writer.add_tensor("rope_factors_long.weight", np.ones(8, np.float32)),
        "rope_factors_long",
    ),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_the_config_has_passes(tmp_path: Path, name: str) -> None:
    assert named_model(written(tmp_path / "model.gguf", *PASSED[name])).kind == "gguf"


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_lacks_is_refused_by_name(tmp_path: Path, name: str) -> None:
    kind, change, said = REFUSED[name]
    with pytest.raises(TrimlineError, match=said):
        named_model(written(tmp_path / "model.gguf", kind, change))


def test_the_conversion_refuses_it_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    recipe = written(tmp_path / "model.gguf", "llama", factors(8.0))
    (out := tmp_path / "out").mkdir()
    with pytest.raises(TrimlineError, match=r"rope_freqs\.weight, which transformers' reader"):
        source(recipe, RunOptions(), out, Events())
    assert not (out / "checkpoint").exists()


def test_a_scale_of_attention_that_no_key_says_is_looked_at(tmp_path: Path) -> None:
    """llama.cpp takes a head's size, transformers' reader what Gemma 2's class has."""
    with pytest.raises(TrimlineError, match=r"which takes 1/√64, and transformers' reader 1/√256"):
        named_model(written(tmp_path / "model.gguf", "gemma2", lambda writer: None, head=64))


@pytest.mark.parametrize(("name", "width"), [("qwen3_moe", 768), ("minimax_m2", 96), ("qwen3_moe", 32)])
def test_our_own_files_of_mixtures_are_sources(tmp_path: Path, name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for experts of another width than Qwen3-MoE's class has, which transformers' reader takes whatever the file says."""
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")
    dense = tiny_model(name, tmp_path / "dense", **{"moe_intermediate_size" if name == "qwen3_moe" else "intermediate_size": width})
    (out := tmp_path / "out").mkdir()
    export_gguf(dense, GgufSlice(precision="fp32"), RunOptions(threads=1), out, Events())
    recipe = ModelSlice(source=str(out / MODEL))
    if width == 32:
        with pytest.raises(TrimlineError, match=r"qwen3moe.expert_feed_forward_length = 32 \(the config has 768\)"):
            named_model(recipe)
        return
    assert named_model(recipe).geometry.blocks == Checkpoint(dense).geometry.blocks
