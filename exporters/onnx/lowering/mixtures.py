"""What the portable graph can hold of a mixture of experts.

Which experts a token goes through is known when the graph runs. So it gathers the chosen experts' matrices for every token, which is what
standard operators can express; that is as much memory as tokens times chosen experts times a matrix.
"""

from __future__ import annotations

from exporters.recipe import Precision
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError

NUMBER = 4  # bytes of a weight: graphs of mixtures are in fp32
ALONE = "say export: null in the recipe, which leaves the graph out"


def gathered_bytes(geometry: Geometry, tokens: int) -> int:
    """Of the largest matrices that a call on so many tokens gathers, gate and up of every chosen expert; 0 where there are no experts."""
    return (
        max((2 * block.expert_width * geometry.hidden for block in geometry.blocks), default=0) * geometry.routing.chosen * tokens * NUMBER
    )


def check_mixture(geometry: Geometry, precision: Precision, tokens: int, memory: int) -> None:
    """Whether a mixture can be exported, and run on so many tokens at once.

    Args:
        geometry: of the model; whatever is no mixture passes.
        precision: of the export.
        tokens: of the longest call.
        memory: bytes that there are.

    Raises:
        TrimlineError: it cannot; says what can be done.
    """
    kind = geometry.family.model_type
    if geometry.family.mixture is None:
        return
    if precision != "fp32":
        raise TrimlineError(f"ONNX graphs of mixtures are made in fp32 alone, and the export of this {kind} asks for {precision}.",
                            f"Set export.precision to fp32, or {ALONE}.")  # fmt: skip
    needed = gathered_bytes(geometry, tokens)
    if needed > memory:
        raise TrimlineError(
            f"The ONNX graph of this {kind} would gather {needed / 2**30:,.0f} GiB of experts for {tokens:,} tokens, and there are "
            f"{memory / 2**30:,.0f} GiB: standard operators know no other way.",
            f"{ALONE.capitalize()}; or evaluate and time on fewer tokens at once.",
        )
