"""What stands against removing units from a family, whatever the plan: said before anything is measured."""

from __future__ import annotations

import math

from pipeline.architecture.families import Axis, Family, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.wrappers import Wrapper
from pipeline.common.errors import TrimlineError


def check_stream(family: Family, within: Wrapper | None = None) -> None:
    """Whether the family's norms can be made to give over fewer channels what they give beside zeros.

    Args:
        family: of the language model.
        within: what holds it.

    Raises:
        TrimlineError: they cannot, or something else writes into the stream.
    """
    if within is not None:
        raise TrimlineError(
            f"The {family.model_type} inside a {within.model_type} cannot lose channels of the residual stream: the projector beside it "
            "writes images into all of them.",
            "Remove FFN channels, KV groups or blocks instead.",
        )
    if family.norm_eps is None:
        shared = any(norm.axis is not Axis.RESIDUAL for norm in family.norms)
        of_norms = "its norms of queries and keys share their epsilon" if shared else "its LayerNorm takes the mean over all channels"
        why = family.fixed_stream or of_norms
        raise TrimlineError(
            f"{family.model_type} cannot lose channels of the residual stream and stay what it computes beside zeros: {why}.",
            "Remove FFN channels, KV groups or blocks instead.",
        )


def check_ffn(family: Family) -> None:
    """Whether FFN channels can go.

    Raises:
        TrimlineError: there are none, or their number cannot change alone.
    """
    if family.fixed_ffn:
        raise TrimlineError(
            f"{family.model_type} cannot lose FFN channels: {family.fixed_ffn}.", "Remove experts, KV groups or blocks instead."
        )


def check_experts(family: Family) -> None:
    """Whether there are experts that could go.

    Raises:
        TrimlineError: there are none.
    """
    if family.mixture is None:
        raise TrimlineError(
            f"{family.model_type} has no experts that could be removed.", "Remove FFN channels, KV groups or blocks instead."
        )


def check_heads(family: Family) -> None:
    """Whether heads can go without changing what those that stay compute.

    Raises:
        TrimlineError: a norm takes its mean over all of them, or no block has heads that are described.
    """
    if Sublayer.ATTENTION not in family.cuttable:
        raise TrimlineError(
            f"{family.model_type} has no KV groups that could go: its attention is of another kind, and is carried as it is.",
            "Remove FFN channels or blocks instead.",
        )
    for norm in family.norms_over_heads:
        raise TrimlineError(
            f"{family.model_type} cannot lose KV groups and stay what it computes beside zeros: {norm.name} takes its mean over all heads, "
            "and its epsilon is that of the other norms.",
            "Remove FFN channels or blocks instead.",
        )


def check_beside(family: Family, empty: bool) -> None:
    """Whether blocks can lose all of their attention.

    Args:
        family: of the language model.
        empty: whether some lose all of it, and stay.

    Raises:
        TrimlineError: something that is carried stands beside it, in the same sublayer.
    """
    if empty and family.has_beside:
        raise TrimlineError(
            f"A block of {family.model_type} cannot lose all of its KV groups: what stands beside its attention is carried as it is.",
            "Keep one KV group in every block (allow_empty: false), or remove whole blocks.",
        )


def check_timed(family: Family) -> None:
    """Whether a table of times says how long a model's blocks take: it knows attention by its KV groups and an FFN by its width.

    Raises:
        TrimlineError: there are blocks of other kinds.
    """
    if family.kinds.rules or family.kinds.costs:
        raise TrimlineError(
            f"Latency tables are made of attention and FFN, and {family.model_type} has blocks of other kinds.",
            "State a budget, or a target of parameters, flops or memory.",
        )


def demand_choice(geometry: Geometry, experts: int, where: str = "every block") -> None:
    """Whether routers find as many experts as they choose for every token, in groups of one size.

    Args:
        geometry: of the model.
        experts: that stay in a block.
        where: for the sentence.

    Raises:
        TrimlineError: they do not; says how many have to stay.
    """
    routing, mixture = geometry.routing, geometry.family.mixture
    assert mixture is not None
    if experts % routing.groups:
        raise TrimlineError(
            f"{experts} experts in {where} are not the same number from each of the {routing.groups} groups that routers choose in.",
            f"Keep a multiple of {routing.groups}.",
        )
    needed = least_experts(geometry)
    if experts < needed:
        within = f", from {routing.chosen_groups} of {routing.groups} groups" if routing.groups > 1 else ""
        raise TrimlineError(
            f"{experts} experts in {where} are too few: {routing.chosen} are chosen for every token{within}.", f"Keep at least {needed}."
        )


def least_experts(geometry: Geometry) -> int:
    """The fewest experts of a block that routers can choose among."""
    routing, mixture = geometry.routing, geometry.family.mixture
    assert mixture is not None
    per_group = math.ceil(routing.chosen / routing.chosen_groups)
    return routing.groups * max(per_group, mixture.group_best if mixture.groups_key else 1)


def check_graph(family: Family) -> None:
    """Whether a graph can hand on what a model keeps of a text from call to call.

    Raises:
        TrimlineError: there are mixers that keep something else than keys and values per head.
    """
    if why := no_graph(family):
        raise TrimlineError(
            f"No graph is made of {family.model_type}: {why}.",
            "Say export: null in the recipe, which leaves the graph out: both models are then evaluated and timed as checkpoints, in torch.",
        )


def no_graph(family: Family) -> str:
    """Half a sentence on why no graph is made of a family; empty where one may be."""
    if not family.kinds.costs:
        return ""
    return "a graph hands keys and values of each head from call to call, and some of its mixers keep a state or latents instead"
