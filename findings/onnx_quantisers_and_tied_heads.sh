#!/bin/sh
# Guess: ONNX Runtime's two quantisers, to 8 bits (`quantize_dynamic`) and to 4 (MatMulNBits), take every product with a stored weight; of a
#   model whose head is the token table transposed, they take the head too, or say that they do not.
# Seen (onnxruntime 1.31.1): a product whose weight comes through a Transpose is left in fp32 by both, without a warning. With a tied head
#   that is how a graph shares one table: the largest product of a small model stays as it was. In 8 bits the table shrinks (it is
#   turned back for that product); in 4 bits the file keeps its size, and the log ends with "complete quantization of head". Stored
#   transposed, the same weight is taken by both.
# For users of Trimline: "quantised" graphs of tied models made by these calls decode about as slowly as before. Look at the node before
#   the logits; `inspect` lists what is stored in which type.
. "$(dirname "$0")/lib.sh"
packages onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6 onnx-ir==1.1.0
python <<'EOF'
import io
import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from seen import seen

WORDS, WIDTH = 2048, 64
random = np.random.default_rng(0)
table, inner = random.standard_normal((WORDS, WIDTH)).astype(np.float32), random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
said = io.StringIO()
warnings = logging.StreamHandler(said)
warnings.setLevel(logging.WARNING)
logging.getLogger().addHandler(warnings)


def model(tied: bool) -> onnx.ModelProto:
    """A table of tokens, one product, and a head over all words."""
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"]), helper.make_node("MatMul", ["x", "inner"], ["y"], "inner")]
    held = {"table": table, "inner": inner}
    if tied:
        nodes.append(helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]))
    else:
        held["head"] = np.ascontiguousarray(table.T)
    nodes.append(helper.make_node("MatMul", ["y", "head"], ["logits"], "head"))
    entry = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", WORDS])
    graph = helper.make_graph(nodes, "decoder", [entry], [output], [numpy_helper.from_array(value, name) for name, value in held.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def products(tied: bool, bits: int) -> list[str]:
    """The operators that multiply after quantising, in order."""
    onnx.save(model(tied), "whole.onnx")
    if bits == 8:
        quantize_dynamic("whole.onnx", "less.onnx")
        less = onnx.load("less.onnx")
    else:
        quantiser = MatMulNBitsQuantizer(onnx.load("whole.onnx"), block_size=32)
        quantiser.process()
        less = quantiser.model.model
        onnx.save(less, "less.onnx")
    return [node.op_type for node in less.graph.node if "MatMul" in node.op_type]


for bits, kind in ((8, "MatMulInteger"), (4, "MatMulNBits")):
    seen(products(tied=False, bits=bits) == [kind, kind], f"{bits} bits, a head of its own: both products are {kind}")
    said.truncate(0)
    seen(products(tied=True, bits=bits) == [kind, "MatMul"], f"{bits} bits, a tied head: the head is MatMul in fp32")
    seen("MatMul" not in said.getvalue() and "head" not in said.getvalue(), f"{bits} bits: no warning names it")
share = Path("less.onnx").stat().st_size / Path("whole.onnx").stat().st_size
seen(share > 0.9, f"4 bits: the file has {share:.2f} of its size")
EOF
