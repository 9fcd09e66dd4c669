"""Weights in fewer bits, by nncf: OpenVINO's own tool, whose form its kernels read.

int8 is one scale and zero point for each row of a weight. int4 has them for each group of ``GROUP`` inputs; embeddings and the output
head stay in 8 bits, and so does a projection whose inputs are no multiple of the smallest group.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from exporters.openvino.runtime import NNCF, needs_openvino
from pipeline.common.errors import TrimlineError, shortened

GROUP, SMALLEST_GROUP = 32, 16
SILENT = {"NNCF_CI": "1"}  # nncf reports every call to a server of its makers, unless it takes this for a test machine


def compress(model: Any, precision: Literal["int8", "int4"], group_size: int | None = None) -> Any:
    """The graph with compressed weights.

    Args:
        model: an ``openvino.Model``.
        precision: of most weights.
        group_size: of int4; None: ``GROUP``. A projection that it does not divide takes the next smaller power of two that does.

    Raises:
        TrimlineError: nncf is missing, or refuses the graph.
    """
    needs_openvino(NNCF)
    with _silent():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

        try:
            if precision == "int8":
                return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
            group = group_size or GROUP
            advanced = AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=min(group, SMALLEST_GROUP)
            )
            mode = nncf.CompressWeightsMode.INT4_ASYM
            return nncf.compress_weights(model, mode=mode, ratio=1.0, group_size=group, advanced_parameters=advanced)
        except Exception as error:  # its own exceptions have no common base but Exception
            why = shortened(" ".join(str(error).split()), 300)
            raise TrimlineError(f"nncf cannot compress this graph to {precision}: {why}", "Use precision: fp32 or fp16.") from error


def halve(graph: Any, model: PreTrainedModel) -> None:
    """Projections, the output head and the table of tokens in fp16, in place; all else stays as it is.

    ``openvino.save_model`` by itself rounds every constant, the angles of rotary embeddings among them, which late positions multiply
    by thousands.

    Args:
        graph: an ``openvino.Model`` that was lowered from ``model``.
        model: in torch, whose modules say which constants are such weights.
    """
    from openvino import opset13 as op
    from openvino._offline_transformations import compress_model_transformation

    table = model.get_input_embeddings()
    halved = {
        f"self.model.{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) or module is table
    }
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    kept = {
        node.get_friendly_name(): np.array(node.data)
        for node in constants
        if node.get_output_element_type(0).get_type_name() == "f32" and node.get_friendly_name() not in halved
    }
    compress_model_transformation(graph)
    for node in graph.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Convert" or name not in kept:
            continue
        if node.input_value(0).get_node().get_friendly_name() == f"{name}_compressed":
            whole = op.constant(kept[name])
            whole.set_friendly_name(name)
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(whole.output(0))
    graph.validate_nodes_and_infer_types()


@contextmanager
def _silent() -> Iterator[None]:
    """nncf draws tables and bars on the terminal."""
    before = {name: os.environ.get(name) for name in SILENT}
    os.environ.update(SILENT)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
