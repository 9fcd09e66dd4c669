"""What a budget means: every definition turned into a fraction of one space's units."""

from __future__ import annotations

from pipeline.architecture.families import Axis
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.spaces import Space, with_units_in
from pipeline.common.errors import TrimlineError
from pipeline.prune.recipe import Budget


def removed_fraction(budget: Budget, space: Space, geometry: Geometry) -> float:
    """The fraction of the space's units that ``budget.remove`` asks for.

    Args:
        budget: with ``remove`` set.
        space: what it is about.
        geometry: the model as it is now.

    Raises:
        TrimlineError: even the whole space is less than that; says what could be met.
    """
    assert budget.remove is not None
    if budget.of == "units":
        return budget.remove
    share = _share_of_space(budget, space, geometry)
    fraction = budget.remove / share
    if fraction >= 1:
        raise TrimlineError(
            f"Removing {budget.remove:.0%} of the decoder's {budget.of} from {space} alone cannot be met: "
            f"all of it is {share:.1%} of them.",
            f"Ask for less than {share:.3f}, or spread the budget over several spaces.",
        )
    return fraction


def _share_of_space(budget: Budget, space: Space, geometry: Geometry) -> float:
    """What part of the decoder's parameters or FLOPs the space holds."""

    def cost(block: BlockShape) -> int:
        return geometry.block_parameters(block) if budget.of == "parameters" else geometry.block_flops(block, budget.context)

    def without(block: BlockShape) -> BlockShape:
        if space is Space.LAYER:
            return BlockShape(0, 0)
        return with_units_in(block, space, 0)

    whole = sum(cost(block) for block in geometry.blocks)
    if space is Space.RESIDUAL:  # one axis of every projection counts its channels
        return (2 if budget.of == "flops" else 1) * geometry.decoder_parameters() / whole
    return 1 - sum(cost(without(block)) for block in geometry.blocks) / whole


def removed_in_every_definition(original: Geometry, result: Geometry, context: int = 512) -> dict[str, float]:
    """What was removed, as a fraction of everything that people call 'sparsity'; what reports print side by side."""

    def units(geometry: Geometry, axis: Axis) -> int:
        return sum(block.ffn if axis is Axis.FFN else block.kv_groups for block in geometry.blocks)

    def gone(before: int, after: int) -> float:
        return 1 - after / before if before else 0.0

    experts = (
        {}
        if original.family.mixture is None
        else {"experts": gone(*(sum(block.experts for block in geo.blocks) for geo in (original, result)))}
    )
    return {
        "ffn_channels": gone(units(original, Axis.FFN), units(result, Axis.FFN)),
        "kv_groups": gone(units(original, Axis.KV), units(result, Axis.KV)),
        **experts,
        "residual_channels": gone(original.hidden, result.hidden),
        "blocks": gone(len(original.blocks), len(result.blocks)),
        "decoder_parameters": gone(original.decoder_parameters(), result.decoder_parameters()),
        "decoder_flops": gone(original.decoder_flops(context), result.decoder_flops(context)),
        "parameters": gone(original.total_parameters(), result.total_parameters()),
    }
