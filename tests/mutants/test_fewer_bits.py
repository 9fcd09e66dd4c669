"""The gate of an ONNX export in fewer bits against one projection that is damaged: perplexity alone forgives each of these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exporters.recipe import ExportSlice
from pipeline.common.errors import GateError
from tests.exporters.models import stock
from tests.mutants.exports import Edit, damaged, edit_tensors, exported, gated

pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
PROJECTION = "layers.1.attn.o_proj"
NAMED = r"model.layers.1.self_attn.o_proj \("
INT4 = ExportSlice(lowering="fused", precision="int4", perplexity_bar=2.0)
FP16 = ExportSlice(lowering="fused", precision="fp16", perplexity_bar=2.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock("llama", tmp_path_factory.mktemp("bits"))


@pytest.fixture(scope="module")
def int4(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("int4") / "out", INT4)


@pytest.fixture(scope="module")
def fp16(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("fp16") / "out", FP16)


def of_part(part: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Edit:
    return lambda name, values: change(values) if PROJECTION in name and name.endswith(part) else None


def first_row(values: NDArray[Any]) -> NDArray[Any]:
    rows = np.arange(len(values))[:, None]
    return np.where(rows == 0, 1.5 * values, values)


MUTANTS: dict[str, tuple[Edit, str]] = {
    "scales 3 % up": (of_part("scales", lambda values: 1.03 * values), r"scaled by 1\.0"),
    "scales 3 % down": (of_part("scales", lambda values: 0.97 * values), r"scaled by 0\.9"),
    "scales 20 % up": (of_part("scales", lambda values: 1.2 * values), "times the error that rounding makes"),
    "scales of one output up": (of_part("scales", first_row), r"output 0 scaled by 1\.4"),
    "zero points one off": (of_part("qzeros", lambda values: values + 0x11), "times the error that rounding makes"),
    "all zeros": (of_part("scales", lambda values: 0 * values), "times the error that rounding makes"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_product_in_four_bits_is_its_own_within_rounding(name: str, checkpoint: Path, int4: Path, tmp_path: Path) -> None:
    edit, said = MUTANTS[name]
    with pytest.raises(GateError, match=f"1 of 15 products .*{NAMED}.*{said}"):
        gated(checkpoint, damaged(int4, tmp_path / "mutant", lambda folder: edit_tensors(folder, edit)), INT4)


@pytest.mark.parametrize("factor", [0.0, 0.99])
def test_a_product_in_fp16_is_its_own_within_rounding(factor: float, checkpoint: Path, fp16: Path, tmp_path: Path) -> None:
    edit = of_part("weight", lambda values: factor * values)
    with pytest.raises(GateError, match=f"1 of 15 products .*{NAMED}.* times the error that rounding makes"):
        gated(checkpoint, damaged(fp16, tmp_path / "mutant", lambda folder: edit_tensors(folder, edit)), FP16)


def test_a_graph_in_four_bits_passes_undamaged(checkpoint: Path, int4: Path) -> None:
    found = gated(checkpoint, int4, INT4)["products"]
    assert found["compared"] == 15
    assert found["passed"]
    assert 0.5 < found["most noise"] < 1.5  # the errors are those that were expected
