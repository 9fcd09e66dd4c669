"""Optimisation profiles: for which shapes an engine is built, from the requests that a recipe names.

An engine refuses shapes outside its profiles and is fastest near each one's optimum. A decoder has two kinds of calls that
differ as much as shapes can: a prompt (many tokens, nothing cached) and a step (one token, much cached). So it gets two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from exporters.onnx.sparsity import load_graph
from pipeline.common.errors import TrimlineError

PREFILL, DECODE = "prefill", "decode"  # the two kinds of calls, and the names of their profiles
BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "total"
Axes = tuple[str | int, ...]
Range = tuple[int, int, int]  # least, where it is fastest, most


class EngineRequest(NamedTuple):
    """A request that the engine must serve: tokens of the prompt, tokens to make, equal requests at once."""

    prompt: int
    output: int = 1
    batch: int = 1


DEFAULT_REQUESTS = (EngineRequest(512), EngineRequest(128, 17))


@dataclass(frozen=True)
class OptimizationProfile:
    """Least, best and largest shape of every input, for one kind of call."""

    name: str
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"name": self.name, "shapes": {name: [list(shape) for shape in shapes] for name, shapes in self.shapes.items()}}


def graph_inputs(graph: Path) -> dict[str, Axes]:
    """Inputs of an ONNX file with their axes: a name where the size is free, a number where it is not."""
    model = load_graph(graph)
    return {value.name: tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim) for value in model.graph.input}


def profiles_for(inputs: Mapping[str, Axes], requests: Sequence[EngineRequest]) -> tuple[OptimizationProfile, ...]:
    """The prompt's profile and the step's. Their optimum is the first request's; all requests fit into their limits.

    Args:
        inputs: of a portable decoder graph, whose free axes are batch, sequence, past and total.
        requests: at least one.

    Raises:
        TrimlineError: the graph has a free axis of another name.
    """
    return tuple(
        OptimizationProfile(name, {value: _shapes(value, axes, ranges) for value, axes in inputs.items()})
        for name, ranges in _ranges(requests)
    )


def _ranges(requests: Sequence[EngineRequest]) -> tuple[tuple[str, dict[str, Range]], ...]:
    first = requests[0]
    step = next((request for request in requests if request.output > 1), first)
    batches = max(request.batch for request in requests)
    prompts = max(request.prompt for request in requests)
    longest = max(request.prompt + request.output - 1 for request in requests) + 1  # one step more than the last one asked for
    middle = step.prompt + max(0, step.output - 2) // 2
    prefill = {BATCH: (1, first.batch, batches), SEQUENCE: (1, first.prompt, prompts)}
    prefill |= {PAST: (0, 0, longest - 1), TOTAL: (1, first.prompt, longest + prompts - 1)}
    decode = {BATCH: (1, step.batch, batches), SEQUENCE: (1, 1, 1), PAST: (0, middle, longest - 1), TOTAL: (1, middle + 1, longest)}
    return (PREFILL, prefill), (DECODE, decode)


def _shapes(name: str, axes: Axes, ranges: Mapping[str, Range]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    unknown = [axis for axis in axes if isinstance(axis, str) and axis not in ranges]
    if unknown:
        raise TrimlineError(
            f"The input {name} has a free axis {unknown[0]!r}, which is none of {', '.join(ranges)}.",
            "Give a folder that Trimline exported with lowering: portable.",
        )
    least, best, most = (tuple(ranges[axis][place] if isinstance(axis, str) else axis for axis in axes) for place in range(3))
    return least, best, most
