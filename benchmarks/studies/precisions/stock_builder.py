"""The graph that onnxruntime-genai's own builder writes, in a folder that the benchmark can time beside ours."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from exporters.folder import CONFIG, EXPORT
from exporters.onnx.files import GRAPH, LOWERING_KEY, PAST, PRESENT
from exporters.onnx.lowering.precision import NUMBERS, bits_by_operator
from exporters.recipe import Precision
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.children import module_command
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.sources.companions import copy_companions


def stock_graph(checkpoint: Path, precision: Precision, out: Path) -> None:
    """Runs the builder's command line on a stock checkpoint, with the quantiser's options that ours has.

    Raises:
        TrimlineError: the builder cannot, and in which words.
    """
    options = [f"{name}={str(value).lower()}" for name, value in NUMBERS[precision].options.items()]
    command = module_command("onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out), "-p", precision, "-e", "cpu")
    with tempfile.TemporaryDirectory() as cache:
        asked = [*command, "-c", cache, *(["--extra_options", *options] if options else [])]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise TrimlineError(f"onnxruntime-genai's builder fails on {checkpoint}: {last}.", "It knows blocks that are alike only.")
    source = Checkpoint(checkpoint)
    _made_readable(out / GRAPH, source.geometry)
    copy_companions(source.folder, out, Events())
    write_json(out / CONFIG, source.config)
    bits = bits_by_operator(ir.load(out / GRAPH), precision, source.geometry)
    write_json(out / EXPORT, {"lowering": "fused", "precision": precision, "logits": "all"} | ({"bits": bits} if bits else {}))


def _made_readable(path: Path, geometry: Geometry) -> None:
    """States the cache's last dimension, which the builder leaves open, and that the cache is written in place; changes no node."""
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith((PAST, PRESENT)):
            value.type.tensor_type.shape.dim[3].dim_value = geometry.head_dim
    model.metadata_props.add(key=LOWERING_KEY, value="fused")
    path.write_bytes(model.SerializeToString())
