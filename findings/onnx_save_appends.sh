#!/bin/sh
# Guess: saving a model twice with `save_as_external_data` to the same names leaves the same two files as saving it once, or is refused
#   in the second place; and saving does not change the model in memory.
# Seen (onnx 1.23.2): weights are appended to the file that is there: it grows by the model's size with every save, and only the last
#   part is used. Load, change one node, save under the same name: the same. There is a guard (FileExistsError), but it looks for
#   the file's name in the current folder, not beside the model. The model in memory has lost its weights after saving.
# For users of Trimline: a script that edits an exported graph in place doubles what is shipped; a size read from
#   `model.onnx.data` is then wrong. Remove the data file first (after loading), or save into another folder.
. "$(dirname "$0")/lib.sh"
packages onnx==1.23.2 numpy==2.4.6
python <<'EOF'
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from seen import seen

weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "weight")
sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "one", sides[:1], sides[1:], [weight])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def save(model: onnx.ModelProto) -> int:
    """Bytes of the data file after one more save."""
    onnx.save(model, "export/model.onnx", save_as_external_data=True, location="model.onnx.data")
    return Path("export/model.onnx.data").stat().st_size


Path("export").mkdir()
once = save(model)
seen(once == 64 * 64 * 4, "saved once, the data file is as large as the weights")
seen(len(model.graph.initializer[0].raw_data) == 0, "the model in memory holds no weights any more")
sizes = [save(onnx.load("export/model.onnx")) for _ in range(2)]
seen(sizes == [2 * once, 3 * once], "loaded and saved again under the same name, it is twice, then three times as large")

os.chdir("export")
try:
    onnx.save(onnx.load("model.onnx"), "model.onnx", save_as_external_data=True, location="model.onnx.data")
    refused = False
except FileExistsError:
    refused = True
seen(refused, "from inside the folder the same call is refused")
EOF
