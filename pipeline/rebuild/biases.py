"""Biases that the dense model has not: which projections get one, by what the shape profile can say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.common.errors import TrimlineError
from pipeline.plan.plan import Plan


def for_profile(plan: Plan, original: Geometry, profile: Profile) -> Plan:
    """The plan with every bias that the profile needs to have its own; those that it adds are zero.

    Raises:
        TrimlineError: the profile cannot say that a projection has a bias.
    """
    return replace(plan, biases=tuple(sorted(biases_added(original, plan.biases, profile))))


def biases_added(original: Geometry, wanted: Collection[str], profile: Profile) -> frozenset[str]:
    """Projections, by their names inside a block, that get a bias which the dense model has not.

    ``free`` lists them in its config. In ``uniform`` and ``decilm`` a switch of the stock config decides, for several
    projections at once: the output projection has a bias where queries, keys and values have.

    Args:
        original: the dense model.
        wanted: what is to have a bias.
        profile: the shape profile.

    Raises:
        TrimlineError: there is no such switch.
    """
    linears = original.family.linears
    if profile is Profile.FREE:
        return frozenset(ln.name for ln in linears if ln.name in wanted and not original.has_bias(ln))
    listed = original.biases.union(wanted)
    without = [ln.name for ln in linears if ln.name in listed and ln.bias is False]
    if without:
        raise TrimlineError(
            f"Profile '{profile.value}' cannot give {without[0]} a bias: {original.family.model_type} has none there, and no config key for one.",
            "Use profile 'free', or compensation 'least_squares' or 'none'.",
        )
    switches = {ln.bias for ln in linears if ln.name in listed and isinstance(ln.bias, str)}
    return frozenset(ln.name for ln in linears if ln.bias in switches and not original.has_bias(ln))


def switches_of(result: Geometry) -> dict[str, bool]:
    """The config switches behind the biases that a result has beyond its family's own, turned on."""
    return {ln.bias: True for ln in result.family.linears if ln.name in result.biases and isinstance(ln.bias, str)}
