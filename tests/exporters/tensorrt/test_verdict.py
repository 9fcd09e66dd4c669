"""Proof of sparse kernels, read from logs and inspector JSON.

No engine has been built on a GPU for these tests: logs and JSON are WRITTEN FROM THE DOCUMENTED FORMATS (the messages of
TensorRT 10 and 11 and of TensorRT 8, and the engine inspector's documented keys). ``make gpu`` keeps real ones.
"""

from __future__ import annotations

import json

import pytest

from exporters.tensorrt.verdict import LogPair, Tactics, judge, read_inspector, read_log

FOUND_DOCUMENTED = "[V] (Sparsity) Found {} layer(s) eligible to use sparse tactics: {}"
CHOSE_DOCUMENTED = "[V] (Sparsity) Chose {} layer(s) using sparse tactics: {}"
SPARSE_KERNEL = "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3_warpsize2x2x1_sptensor16x8x64"
DENSE_KERNEL = "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize128x128x64_stage4_warpsize2x2x1_tensor16x8x16"


def documented_log(*pairs: tuple[int, int]) -> list[str]:
    lines = ["[V] Global timing cache in use.", "[I] Detected 63 inputs and 61 output network tensors."]
    for found, chose in pairs:
        lines += [FOUND_DOCUMENTED.format(found, "a, b"), CHOSE_DOCUMENTED.format(chose, "a")]
    return [*lines, "[V] Total Activation Memory: 1024"]


def documented_json(*layers: dict[str, object] | str) -> str:
    return json.dumps({"Layers": list(layers), "I/O Tensors": []})


def layer(name: str, tactic: str, **more: object) -> dict[str, object]:
    return {"Name": name, "LayerType": "gemm", "Inputs": [], "Outputs": [], "TacticName": tactic, "TacticValue": "0x1"} | more


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((), LogPair()),
        (((196, 140),), LogPair(196, 140)),
        (((39, 0),), LogPair(39, 0)),
        (((10, 10), (4, 2)), LogPair(4, 2)),  # one pair per pass: the last one counts
        (((0, 0),), LogPair(0, 0)),
    ],
)
def test_the_last_pair_of_the_log(pairs, expected):
    assert read_log(documented_log(*pairs)) == expected


def test_a_found_without_its_chose_forgets_the_pair_before():
    assert read_log([*documented_log((4, 4)), FOUND_DOCUMENTED.format(7, "")]) == LogPair(7, None)


def test_the_messages_of_tensorrt_8():
    lines = [
        "[I] (Sparsity) Layers eligible for sparse math: Conv_0, MatMul_4 + Add_5, Gemm_9",
        "[I] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_0",
    ]
    assert read_log(lines) == LogPair(3, 1)
    assert read_log([lines[0], "[I] (Sparsity) TRT inference plan picked sparse implementation for layers:"]) == LogPair(3, 0)


def test_kernels_of_a_detailed_engine():
    text = documented_json(
        layer("gate", SPARSE_KERNEL),
        layer("q", DENSE_KERNEL),
        layer("attention", "", LayerType="Myelin", Name="{ForeignNode[a...b]}"),
        layer("reformat", "", LayerType="Reformat"),
        layer("conv", "sm80_xmma_fprop_sparse_conv_interleaved", HasSparseWeights=1),
        layer("conv stored sparse, run dense", DENSE_KERNEL, HasSparseWeights=1),
    )
    assert read_inspector(text) == Tactics(("gate", "conv"), named=4, hidden=1)


def test_an_engine_that_was_not_built_in_detail_names_layers_only():
    assert read_inspector(documented_json("gate", "q")) == Tactics((), 0, 2)
    assert read_inspector(None) == Tactics()


@pytest.mark.parametrize(
    ("asked", "log", "tactics", "verdict"),
    [
        (False, LogPair(9, 9), Tactics(("a",), 1, 0), "refuted"),
        (True, LogPair(196, 140), Tactics(), "proved"),
        (True, LogPair(39, 0), Tactics(), "refuted"),
        (True, LogPair(0, None), Tactics((), 3, 1), "refuted"),
        (True, LogPair(), Tactics(("a",), 5, 2), "proved"),
        (True, LogPair(39, 0), Tactics(("a",), 5, 2), "proved"),  # a kernel's name outweighs the count
        (True, LogPair(), Tactics((), 5, 0), "refuted"),
        (True, LogPair(), Tactics((), 5, 2), "unknown"),
        (True, LogPair(7, None), Tactics((), 0, 2), "unknown"),
        (True, LogPair(), Tactics(), "unknown"),
    ],
)
def test_verdicts(asked, log, tactics, verdict):
    proof = judge(asked, log, tactics)
    assert proof.verdict == verdict
    assert proof.why
    assert json.loads(json.dumps(proof.as_record()))["found"] == log.found
