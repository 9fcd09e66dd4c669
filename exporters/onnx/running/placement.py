"""Where the nodes of an opened session run: ONNX Runtime gives what a GPU's provider has no kernel for to the processor, without a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from exporters.onnx.runtime import provider_refusal

RECORD = "session.record_ep_graph_assignment_info"  # without it a session does not know afterwards
# What computes shapes, positions and masks from sizes, a few numbers each: the CUDA provider leaves these to the processor by itself.
SHAPE_OPERATORS = {
    *("Shape", "Size", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Reshape", "ConstantOfShape", "Range"),
    *("Add", "Sub", "Mul", "Div", "Neg", "Min", "Max", "Where", "Expand", "Identity", "Constant", "ReduceProd", "ReduceSum"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
}


def places(session: Any) -> list[tuple[str, str]]:
    """(provider, operator) of every node, as the session assigned them."""
    return [(part.ep_name, node.op_type) for part in session.get_provider_graph_assignment_info() for node in part.get_nodes()]


def check_places(found: Iterable[tuple[str, str]], chain: Sequence[str]) -> None:
    """Whether only computations on shapes run elsewhere than on the chain.

    Raises:
        TrimlineError: something else does; the operators are named.
    """
    stray = sorted({operator for provider, operator in found if provider not in chain and operator not in SHAPE_OPERATORS})
    if stray:
        raise provider_refusal(chain[0], f"it leaves {', '.join(stray)} to the processor")
