"""The 2:4 checker on ONNX graphs: against counting by hand, through everything that may stand before a product, and polygraphy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.sparsity import check_two_four, weight_patterns
from pipeline.common.errors import TrimlineError

K, N = 64, 24


def weight(axis: int, complies: bool = True, shape: tuple[int, int] = (K, N), dtype: type = np.float32) -> np.ndarray:
    """Random values with two zeros in every group along ``axis``, in one group only one where it must not comply."""
    values = np.random.default_rng(3).uniform(0.5, 1.5, shape).astype(np.float32)
    moved = np.moveaxis(values, axis, -1)
    for row, line in enumerate(moved):
        for group in range(0, line.size, 4):
            line[group + row % 3] = line[group + 3] = 0
    if not complies:
        moved[1, 4:8] = (0, 1, 2, 3)
    return values.astype(dtype)


def graph(
    folder: Path, nodes: list, tensors: dict[str, np.ndarray | TensorProto], *, kind: int = TensorProto.FLOAT, width: int = K
) -> Path:
    folder.mkdir(exist_ok=True)
    given = [tensor if isinstance(tensor, TensorProto) else numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("x", kind, ["batch", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            given,
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def node(operator: str, *inputs: str, out: str = "y", domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [out], name=operator.lower() + "_" + out, domain=domain, **attributes)


def only(path: Path) -> tuple[float, int | None]:
    (found,) = weight_patterns(path)
    return found.two_four, found.axis


def share_by_hand(values: np.ndarray, axis: int) -> float:
    lines = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    groups = [(line[at : at + 4] == 0).sum() >= 2 for line in lines for at in range(0, line.size, 4)]
    return sum(groups) / len(groups)


@pytest.mark.parametrize("complies", [True, False])
@pytest.mark.parametrize(
    ("operator", "attributes", "axis"),
    [
        ("MatMul", {}, 0),
        ("Gemm", {"transB": 1}, 1),
        ("Gemm", {}, 0),
        ("FusedMatMul", {"transB": 1, "domain": "com.microsoft"}, 1),
        ("FusedMatMul", {"domain": "com.microsoft"}, 0),
    ],
)
def test_direct_weights(tmp_path, operator, attributes, axis, complies):
    values = weight(axis, complies, (K, N) if axis == 0 else (N, K))
    share, found = only(graph(tmp_path, [node(operator, "x", "w", **attributes)], {"w": values}))
    assert found == axis
    assert share == pytest.approx(share_by_hand(values, axis))
    assert (share == 1.0) is complies


def test_the_other_axis_does_not_comply(tmp_path):
    assert only(graph(tmp_path, [node("MatMul", "x", "w")], {"w": weight(1)}))[0] < 0.7


def test_a_constant_left_operand_is_summed_over_its_last_axis(tmp_path):
    assert only(graph(tmp_path, [node("MatMul", "w", "x")], {"w": weight(1, shape=(N, K))})) == (1.0, 1)


def test_through_transposition_cast_and_identity(tmp_path):
    nodes = [node("Transpose", "w", out="t", perm=[1, 0]), node("Cast", "t", out="c", to=TensorProto.FLOAT), node("MatMul", "x", "c")]
    path = graph(tmp_path, nodes, {"w": weight(1, shape=(N, K), dtype=np.float16)})
    assert only(path) == (1.0, 1)


def test_through_a_reshape_the_axis_is_not_named(tmp_path):
    nodes = [node("Reshape", "w", "s", out="r"), node("MatMul", "x", "r")]
    assert only(graph(tmp_path, nodes, {"w": weight(0).reshape(-1), "s": np.array([K, N])})) == (1.0, None)


@pytest.mark.parametrize("point", [0, 7])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dequantised_weights_are_zero_at_their_zero_point(tmp_path, point, per_channel):
    size = N if per_channel else 1
    quantised = np.where(weight(0) == 0, point, point + 3).astype(np.int8)
    scale = np.full(size, 0.1, np.float32) if per_channel else np.float32(0.1)
    tensors = {"w": quantised, "scale": np.asarray(scale), "zp": np.full(np.shape(scale), point, np.int8)}
    nodes = [node("DequantizeLinear", "w", "scale", "zp", out="d", axis=1), node("MatMul", "x", "d")]
    assert only(graph(tmp_path, nodes, tensors)) == (1.0, 0)
    broken = quantised.copy()
    broken[4:7, 2] = point + 1
    assert only(graph(tmp_path, nodes, tensors | {"w": broken}))[0] == pytest.approx(1 - 1 / (K * N // 4))


def test_blockwise_scales_and_a_transposition(tmp_path):
    points = np.repeat(np.arange(N, dtype=np.int8)[:, None], K // 16, 1)
    stored = np.where(weight(1, shape=(N, K)) == 0, np.repeat(points, 16, 1), 99).astype(np.int8)
    tensors = {"w": stored, "scale": np.full((N, K // 16), 0.5, np.float32), "zp": points}
    nodes = [
        node("DequantizeLinear", "w", "scale", "zp", out="d", axis=1, block_size=16),
        node("Transpose", "d", out="t", perm=[1, 0]),
        node("MatMul", "x", "t"),
    ]
    assert only(graph(tmp_path, nodes, tensors)) == (1.0, 1)


def test_rounding_to_zero_counts_where_a_weight_is_quantised_in_the_graph(tmp_path):
    values = weight(0, complies=False)
    values[values > 0] += 1  # beyond half a step, but for what follows
    values[4:8, 1] = (0, 0.04, 2, 3)  # 0.04 rounds to 0
    nodes = [
        node("QuantizeLinear", "w", "scale", "zp", out="q"),
        node("DequantizeLinear", "q", "scale", "zp", out="d"),
        node("MatMul", "x", "d"),
    ]
    tensors = {"w": values, "scale": np.array(0.1, np.float32), "zp": np.array(0, np.int8)}
    assert only(graph(tmp_path, nodes, tensors))[0] == 1.0
    assert share_by_hand(values, 0) < 1.0


@pytest.mark.parametrize("point", [0, 5])
def test_integer_products(tmp_path, point):
    quantised = np.where(weight(0) == 0, point, point + 9).astype(np.int8)
    nodes = [node("MatMulInteger", "x", "w", "azp", "zp")]
    tensors = {"w": quantised, "azp": np.array(0, np.uint8), "zp": np.full(N, point, np.int8)}
    assert only(graph(tmp_path, nodes, tensors, kind=TensorProto.UINT8)) == (1.0, 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_packed_weights(tmp_path, bits, asymmetric):
    """Packed by onnxruntime's own quantiser; the mask of what it dequantises to is counted by hand."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    path = graph(tmp_path, [node("MatMul", "x", "w")], {"w": weight(0)})
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=not asymmetric, bits=bits)
    quantiser = MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantiser.process()
    onnx.save(quantiser.model.model, path)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dequantised = session.run(None, {"x": np.eye(K, dtype=np.float32)})[0]
    share, axis = only(path)
    assert axis is None
    assert share == pytest.approx(share_by_hand(np.where(np.abs(dequantised) < 1e-6, 0, dequantised), 0))
    assert (share == 1.0) is True  # zero is a value of every one of these quantisers


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precisions(tmp_path, dtype):
    assert only(graph(tmp_path, [node("MatMul", "x", "w")], {"w": weight(0, dtype=dtype)}))[0] == 1.0


def test_a_width_that_is_no_multiple_of_four_never_complies(tmp_path):
    assert only(graph(tmp_path, [node("MatMul", "x", "w")], {"w": np.zeros((K + 2, N), np.float32)}, width=K + 2))[0] == 0.0


def test_the_head_is_not_judged(tmp_path):
    nodes = [node("MatMul", "x", "w", out="h"), node("MatMul", "h", "v", out="half"), node("Cast", "half", out="logits", to=1)]
    tensors = {"w": weight(0), "v": np.ones((N, 8), np.float32)}
    patterns = tuple(weight_patterns(graph(tmp_path, nodes, tensors)))
    assert [pattern.head for pattern in patterns] == [False, True]
    assert check_two_four(patterns)["complies"]
    assert not check_two_four([pattern for pattern in patterns if pattern.head])["complies"]  # nothing to judge is no pass
    worse = tuple(weight_patterns(graph(tmp_path, nodes, tensors | {"w": weight(0, complies=False)})))
    assert check_two_four(worse) | {"head": 0} == {"complies": False, "weights": 1, "two_four": 0, "others": ["w"], "head": 0}


def test_a_weight_read_along_two_axes_comes_twice(tmp_path):
    square = weight(0, shape=(K, K))
    nodes = [node("MatMul", "x", "w", out="h"), node("Gemm", "h", "w", transB=1)]
    assert [(found.axis, found.complies) for found in weight_patterns(graph(tmp_path, nodes, {"w": square}))] == [(0, True), (1, False)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_polygraphy_says_the_same(tmp_path, dtype):
    """Its bf16 reading is wrong (a true 2:4 tensor is reported as dense), so it is asked about fp32 and fp16 only."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    cases = {"good": weight(0, dtype=dtype), "bad": weight(0, complies=False, shape=(N, N), dtype=dtype)}
    nodes = [node("MatMul", "x", "good", out="h"), node("MatMul", "h", "bad", out="y")]
    path = graph(tmp_path, nodes, cases, kind=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    code = "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; sys.exit(main())"
    command = [sys.executable, "-c", code, "inspect", "sparsity", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = (said.stdout + said.stderr).splitlines()
    theirs = {name: any("Found sparse tensor" in line and name in line for line in lines) for name in cases}
    assert any("Found non-sparse tensor" in line and "bad" in line for line in lines), lines
    assert theirs == {found.name: found.complies for found in weight_patterns(path)} == {"good": True, "bad": False}


def test_data_that_is_missing_is_a_sentence(tmp_path):
    path = graph(tmp_path, [node("MatMul", "x", "w")], {"w": weight(0)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    with pytest.raises(TrimlineError, match="The weight w cannot be read"):
        list(weight_patterns(path))


def test_records_are_json(tmp_path):
    (found,) = weight_patterns(graph(tmp_path, [node("MatMul", "x", "w")], {"w": weight(0)}))
    assert json.loads(json.dumps(found.as_record()))["complies"] is True
