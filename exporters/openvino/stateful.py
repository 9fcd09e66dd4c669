"""The cache as a state of the graph: an infer request keeps it between calls, and OpenVINO fuses it with the attention that reads it.

A state is a ReadValue and an Assign. ``beam_idx`` (batch,) says which row of the state each row of a call goes on from; openvino-genai
reorders beams with it. Before the first call a state has no tokens and as many rows as the call has, so it is made from ``input_ids``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from exporters.openvino.lowering import INPUTS, cache_names
from pipeline.common.errors import TrimlineError

BEAMS = "beam_idx"


def make_stateful(model: Any, blocks: Iterable[int]) -> None:
    """Turns the caches of an ``openvino.Model``, whose names are those of ``cache_names``, into states, in place.

    Raises:
        TrimlineError: OpenVINO made another number of states.
    """
    import openvino as ov
    from openvino import opset13 as op
    from openvino._offline_transformations import apply_make_stateful_transformation

    inputs = {name: parameter for parameter in model.get_parameters() for name in parameter.output(0).get_names()}
    beams = op.parameter(ov.PartialShape([-1]), ov.Type.i32, name=BEAMS)
    beams.output(0).set_names({BEAMS})
    model.add_parameters([beams])
    pairs: dict[str, str] = {}
    for number in blocks:
        key, value, new_key, new_value = cache_names(number)
        pairs |= {key: new_key, value: new_value}
    for name in pairs:
        readers = list(inputs[name].output(0).get_target_inputs())
        ordered = op.gather(inputs[name].output(0), beams.output(0), op.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(ordered.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, pairs)
    found = _begin_empty(model, inputs[INPUTS[0]])
    if found != len(pairs):
        raise TrimlineError(f"OpenVINO made {found} states of {len(pairs)} caches.", "Please report it with the recipe.")


def _begin_empty(model: Any, ids: Any) -> int:
    """Gives each state a first value of no tokens; how many there are."""
    from openvino import opset13 as op

    rows = op.gather(op.shape_of(ids.output(0)), op.constant(np.array([0], np.int64)), op.constant(np.int64(0)))
    states = [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]
    for state in states:
        _, heads, _, width = state.get_output_partial_shape(0)
        size = op.concat([rows, op.constant(np.array([heads.get_length(), 0, width.get_length()], np.int64))], 0)
        state.set_arguments([op.broadcast(op.constant(np.zeros((), np.float32)), size).output(0)])
    model.validate_nodes_and_infer_types()
    return len(states)
