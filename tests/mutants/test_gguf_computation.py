"""The gate of a GGUF against a writer that says one thing of a model's computation wrongly: keys, norms, the order of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest

from exporters.gguf import child, tensors
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.rebuild import gguf_form
from tests.exporters.models import OPTIONS
from tests.tiny import tiny_model

TYPES = ("gemma3_text", "granite", "ministral3", "apertus", "glm4", "cohere2", "olmo", "gemma2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny_model(name, folder / name) for name in TYPES}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without llama.cpp, without transformers' own reader of GGUF files, without the renderer of templates."""
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")
    monkeypatch.setattr("exporters.gguf.gate.transformers_obstacle", lambda *_: "left out")
    monkeypatch.setattr("exporters.text.tokens.check_template", lambda *_: None)


def larger(name: str) -> Callable[[Any, float], None]:
    write = getattr(gguf.GGUFWriter, name)
    return lambda self, value: write(self, value * 2)


def last_larger(name: str) -> Callable[[Any, list[float]], None]:
    write = getattr(gguf.GGUFWriter, name)
    return lambda self, values: write(self, [*values[:-1], values[-1] + 0.1])


def turned_round(
    self: gguf.GGUFWriter, pattern: list[bool], write: Callable[..., None] = gguf.GGUFWriter.add_sliding_window_pattern
) -> None:
    write(self, pattern[::-1])


def other_number(suffix: str) -> Callable[[Any, str, float], None]:
    write = gguf.GGUFWriter.add_float32
    return lambda self, key, value: write(self, key, value * 1.01 if key.endswith(suffix) else value)


def nothing(self: gguf.GGUFWriter, value: Any) -> None:
    pass


KEYS: list[tuple[str, str, Callable[..., None], str]] = [
    ("gemma3_text", "add_sliding_window_pattern", turned_round, "Block 0 of the GGUF has the window None, and the checkpoint 16"),
    ("gemma3_text", "add_sliding_window", larger("add_sliding_window"), "has the window 32"),
    ("gemma3_text", "add_rope_freq_base_swa", larger("add_rope_freq_base_swa"), "rope.freq_base = 20000.0"),
    ("gemma3_text", "add_rope_scaling_factor", larger("add_rope_scaling_factor"), "turns by other angles than the checkpoint"),
    ("gemma3_text", "add_layer_norm_rms_eps", larger("add_layer_norm_rms_eps"), "layer_norm_rms_epsilon"),
    ("gemma2", "add_float32", other_number("attn_logit_softcapping"), "attn_logit_softcapping = 50.5"),
    ("granite", "add_float32", other_number("logit_scale"), "logit_scale = 2.0"),
    ("granite", "add_float32", other_number("residual_scale"), "residual_scale = 0.5"),
    ("granite", "add_float32", other_number("embedding_scale"), "embedding_scale = 2.0"),
    ("granite", "add_float32", other_number("attention.scale"), "scales scores by 0.202"),
    ("ministral3", "add_float32", other_number("temperature_scale"), "temperature_scale = 0.10"),
    ("ministral3", "add_rope_scaling_attn_factors", larger("add_rope_scaling_attn_factors"), "multiplies queries by"),
    ("ministral3", "add_rope_scaling_orig_ctx_len", larger("add_rope_scaling_orig_ctx_len"), "original_context_length = 128"),
    ("ministral3", "add_rope_scaling_type", nothing, "turns by other angles"),
    ("apertus", "add_xielu_alpha_n", last_larger("add_xielu_alpha_n"), r"mlp\.act_fn\.alpha_n"),
    ("glm4", "add_rope_dimension_count", larger("add_rope_dimension_count"), "turns by other angles"),
    ("cohere2", "add_layer_norm_eps", larger("add_layer_norm_eps"), "layer_norm_epsilon"),
    ("cohere2", "add_float32", other_number("logit_scale"), "logit_scale = 0.25"),
    ("olmo", "add_float32", other_number("clamp_kqv"), "clamp_kqv = 2.0"),
]


@pytest.mark.parametrize(("name", "method", "written", "said"), KEYS, ids=[f"{row[0]}-{row[1]}-{row[3][:20]}" for row in KEYS])
def test_a_key_says_what_the_model_computes(
    name: str,
    method: str,
    written: Callable[..., None],
    said: str,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, method, written)
    with pytest.raises(GateError, match=said):
        export_gguf(models[name], GgufSlice(precision="fp32"), OPTIONS, tmp_path, Events())


def test_norms_as_they_are_stored_are_not_what_gemma_multiplies_by(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_less_one", lambda _: frozenset())
    with pytest.raises(GateError, match=r"attn_norm\.weight of the GGUF is not what model\.layers\.0\.input_layernorm multiplies by"):
        export_gguf(models["gemma3_text"], GgufSlice(precision="fp32"), OPTIONS, tmp_path, Events())


@pytest.mark.parametrize("name", ["granite", "cohere2", "gemma2"])
def test_the_order_of_channels_is_that_in_which_llama_cpp_turns_them(
    name: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> gguf_form.GgufForm:
        form = gguf_form.gguf_form(*given)
        return replace(form, permuted=not form.permuted)

    monkeypatch.setattr("exporters.gguf.stage.gguf_form", wrong)
    with pytest.raises(GateError, match=r"attn_q\.weight of the GGUF has channels of heads in another order"):
        export_gguf(models[name], GgufSlice(precision="fp32"), OPTIONS, tmp_path, Events())
