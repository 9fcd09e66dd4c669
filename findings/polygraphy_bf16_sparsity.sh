#!/bin/sh
# Guess: `polygraphy inspect sparsity` judges 2:4 by which weights are zero, in any precision, and its exit status says so.
# Seen (polygraphy 0.53.6): the same 2:4 weights are found sparse in fp32 and fp16, and not sparse in bf16. The exit status is 0 in
#   all cases, also where nothing is sparse: only the text says it.
# For users of Trimline: a 2:4 model that was exported in bf16 is not worse than its fp16 twin. Check bf16 by another tool, and read
#   polygraphy's lines in scripts, not its status.
. "$(dirname "$0")/lib.sh"
packages polygraphy==0.53.6 onnx==1.23.2 ml_dtypes==0.6.0 numpy==2.4.6
python <<'EOF'
import subprocess

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper
from seen import seen

weights = np.random.default_rng(0).standard_normal((16, 4, 32)).astype(np.float32)  # groups of four along the inputs
dense = weights.reshape(64, 32).copy()
np.put_along_axis(weights, np.argsort(np.abs(weights), axis=1)[:, :2], 0, axis=1)


def verdict(kind: int, values: np.ndarray) -> tuple[bool, int]:
    """(found sparse, exit status)"""
    weight = helper.make_tensor("weight", kind, [64, 32], values.tobytes(), raw=True)
    sides = [helper.make_tensor_value_info(name, kind, ["n", width]) for name, width in (("x", 64), ("y", 32))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "one", sides[:1], sides[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "model.onnx")
    done = subprocess.run(["env/bin/polygraphy", "inspect", "sparsity", "model.onnx"], capture_output=True, text=True)
    return "Found sparse tensor: weight" in done.stdout + done.stderr, done.returncode


sparse = weights.reshape(64, 32)
seen(verdict(TensorProto.FLOAT, sparse) == (True, 0), "2:4 in fp32 is found sparse")
seen(verdict(TensorProto.FLOAT16, sparse.astype(np.float16)) == (True, 0), "2:4 in fp16 is found sparse")
seen(verdict(TensorProto.BFLOAT16, sparse.astype(ml_dtypes.bfloat16)) == (False, 0), "2:4 in bf16 is not, with exit status 0")
seen(verdict(TensorProto.FLOAT, dense) == (False, 0), "dense fp32 is not found sparse, with exit status 0 as well")
EOF
