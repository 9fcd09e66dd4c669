"""The gate of a GGUF against a writer of mixtures that errs: in what it stacks, in how it names it, in what it says of the router."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from exporters.gguf import child, experts
from exporters.gguf.experts import MATRICES, ExpertPart
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from tests.exporters.gguf.test_mixtures import small
from tests.exporters.models import OPTIONS
from tests.tiny import tiny_model

TYPES = ("glm4_moe", "gpt_oss", "minimax_m2", "qwen2_moe", "qwen3_moe")
GATE, UP, DOWN = MATRICES
ROUTER, CORRECTION = gguf.MODEL_TENSOR.FFN_GATE_INP, gguf.MODEL_TENSOR.FFN_EXP_PROBS_B
SWAPPED = [1, 0, *range(2, 8)]
right = ExpertPart.of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: tiny_model(name, folder / name, **small(name)) for name in TYPES}


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(child.VARIABLE, raising=False)
    monkeypatch.setattr(child, "MODULE", "trimline_has_no_such_module")
    monkeypatch.setattr("exporters.text.tokens.check_template", lambda *_: None)  # its process takes longer than everything else here


def exported(model: Path, out: Path, precision: Any = "fp32") -> None:
    export_gguf(model, GgufSlice(precision=precision), OPTIONS, out, Events())


def taken(*kinds: gguf.MODEL_TENSOR, wrong: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[ExpertPart, torch.Tensor], torch.Tensor]:
    """A part that is taken wrongly, by the writer and by what the gate holds the file's tensors against."""
    return lambda part, source: wrong(right(part, source)) if part.kind in kinds else right(part, source)


# Both the writer and the list that tensors are compared by go through this method, so that only what is computed shows it.
STACKED: dict[str, tuple[str, Callable[..., torch.Tensor], str]] = {
    "two experts swapped": ("qwen3_moe", taken(*MATRICES, wrong=lambda found: found[SWAPPED]), "an expert of block 0"),
    "a router's row of another expert": ("qwen3_moe", taken(ROUTER, wrong=lambda found: found[SWAPPED]), "the experts of block 0"),
    "two biases of experts swapped": (
        "gpt_oss",
        taken(DOWN, wrong=lambda found: found[SWAPPED] if found.dim() == 2 else found),
        "an expert",
    ),
    "no correction": ("minimax_m2", taken(CORRECTION, wrong=torch.zeros_like), "the experts of block 0"),
    "channels of an expert in another order": ("qwen2_moe", taken(DOWN, wrong=lambda found: found.flip(-1)), "an expert of block 0"),
}


@pytest.mark.parametrize("mutant", STACKED)
def test_what_is_stacked(mutant: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, said = STACKED[mutant]
    monkeypatch.setattr(ExpertPart, "of", wrong)
    with pytest.raises(GateError, match=f"The GGUF computes {said}"):
        exported(models[name], tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_gate_and_up_swapped(models: dict[str, Path], tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "MATRICES", (UP, GATE, DOWN))
    with pytest.raises(GateError, match="The GGUF computes an expert of block 0 otherwise"):
        exported(models["qwen3_moe"], tmp_path, precision)


def test_halves_that_take_turns_cut_in_the_middle(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(part: ExpertPart, source: torch.Tensor) -> torch.Tensor:
        return right(part, source) if part.half is None else right(part, source.flip(-1))

    monkeypatch.setattr(ExpertPart, "of", halves)
    with pytest.raises(GateError, match="The GGUF computes an expert of block 0 otherwise"):
        exported(models["gpt_oss"], tmp_path)


def other(name: str, value: Any) -> tuple[str, Callable[..., None]]:
    write = getattr(gguf.GGUFWriter, name)
    return name, lambda self, *_: write(self, value)


def no_scale(self: gguf.GGUFWriter, key: str, value: float, write: Callable[..., None] = gguf.GGUFWriter.add_float32) -> None:
    write(self, key, 1.5 * value if key.endswith("weights_scale") else value)


SOFTMAX = gguf.ExpertGatingFuncType.SOFTMAX
KEYS: list[tuple[str, tuple[str, Callable[..., None]], str]] = [
    ("qwen3_moe", other("add_expert_used_count", 3), "expert_used_count = 3, and the checkpoint 2"),
    ("qwen3_moe", other("add_expert_count", 7), "expert_count = 7, and the checkpoint 8"),
    ("qwen3_moe", other("add_expert_feed_forward_length", 64), "expert_feed_forward_length = 64, and the checkpoint 32"),
    ("qwen2_moe", other("add_expert_shared_feed_forward_length", 64), "shared experts have 64 channels, and they have 96"),
    ("glm4_moe", other("add_expert_shared_count", 1), "shared experts have 32 channels, and they have 64"),
    ("glm4_moe", other("add_leading_dense_block_count", 2), "a dense FFN in block 1, where the checkpoint has experts"),
    ("glm4_moe", other("add_leading_dense_block_count", 0), "experts in block 0, where the checkpoint has a dense FFN"),
    ("glm4_moe", other("add_expert_weights_norm", False), "computes the experts of block 1 otherwise"),
    ("glm4_moe", other("add_expert_gating_func", SOFTMAX), "computes the experts of block 1 otherwise"),
    ("glm4_moe", ("add_float32", no_scale), "expert_weights_scale = 1.5, and the checkpoint 1.0"),
    ("minimax_m2", other("add_expert_gating_func", SOFTMAX), "computes the experts of block 0 otherwise"),
]


@pytest.mark.parametrize(("name", "method", "said"), KEYS, ids=[f"{row[0]}-{row[1][0]}-{row[2][:25]}" for row in KEYS])
def test_a_key_says_how_experts_are_chosen_and_weighed(
    name: str,
    method: tuple[str, Callable[..., None]],
    said: str,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, *method)
    with pytest.raises(GateError, match=said):
        exported(models[name], tmp_path)
