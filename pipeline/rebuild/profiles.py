"""Whether a shape profile can express a result, said before an hour of pruning; see docs/shape-profiles.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.architecture.families import Family, Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.obstacles import check_beside, check_heads, check_stream, demand_choice
from pipeline.architecture.profile import Profile
from pipeline.architecture.wrappers import Wrapper
from pipeline.checkpoints.stock import accepts_heads, has_sliding_window, is_mistral_shaped
from pipeline.common.errors import TrimlineError
from pipeline.plan.selection import Selection
from pipeline.rebuild.consumers import consumers

__all__ = ["check_profile", "check_request", "consumers"]

USE_FREE = "Use profile 'free', which any block shapes fit."


def check_request(
    profile: Profile,
    family: Family,
    uneven_ffn: bool,
    uneven_kv: bool,
    fewer_heads: bool,
    config: Mapping[str, Any],
    within: Wrapper | None = None,
) -> None:
    """What a recipe alone already rules out, before calibration.

    Args:
        profile: the shape profile asked for.
        family: the model's architecture.
        uneven_ffn, uneven_kv: the allocation may keep another width, or another number of KV groups, in every block.
        fewer_heads: some KV groups go.
        config: the dense model's config.json.
        within: what holds the model.

    Raises:
        TrimlineError: the profile cannot express what the recipe may produce; says what to change.
    """
    _check_within(within, profile)
    _check_mixture(family, profile)
    if profile is Profile.UNIFORM and (uneven_ffn or uneven_kv):
        what = "FFN widths" if uneven_ffn else "KV groups"
        raise TrimlineError(
            f"The allocation gives every block its own {what}, and profile 'uniform' needs all blocks alike.",
            "Use allocation 'uniform', or profile 'decilm' or 'free'." if uneven_ffn else "Use allocation 'uniform', or profile 'free'.",
        )
    if profile is Profile.DECILM:
        _check_decilm_family(family, config)
        if uneven_kv:
            raise TrimlineError("Profile 'decilm' needs the same number of KV groups in every block.", f"{_UNIFORM_KV} {USE_FREE}")
    if fewer_heads:
        check_heads(family)
        _check_square(family, profile)


def check_profile(family: Family, original: Geometry, result: Geometry, profile: Profile, config: Mapping[str, Any]) -> None:
    """Whether ``profile`` can express ``result``; needs the plan and the dense config.json, no weights.

    Raises:
        TrimlineError: names the block or size that does not fit and what to change.
    """
    _check_within(original.within, profile)
    _check_mixture(family, profile)
    _check_choice(result)
    if result.hidden != original.hidden:
        check_stream(family, original.within)
    if {block.kv_groups for block in result.blocks} - {block.kv_groups for block in original.blocks} - {0}:
        check_heads(family)
    if not any(block.has(Sublayer.ATTENTION) for block in result.blocks):
        raise TrimlineError("No block keeps its attention, so no token would see another.", "Keep the attention of at least one block.")
    check_beside(family, not all(block.kv_groups for block in result.ordinary(Sublayer.ATTENTION)))
    if not any(map(result.keeps_tokens, result.blocks)):
        raise TrimlineError(
            "No block keeps its attention, and transformers counts the tokens of a text by what attention keeps of them.",
            "Keep at least one block with attention.",
        )
    if profile is Profile.UNIFORM:
        _check_uniform(family, original, result, config)
    elif profile is Profile.DECILM:
        _check_decilm_family(family, config)
        _check_decilm_blocks(result)


def check_pinned(original: Geometry, selection: Selection) -> None:
    """Whether every block stays that something beside the language model counts on.

    Raises:
        TrimlineError: names the block.
    """
    gone = sorted(set(range(original.pinned)) - set(selection.blocks))
    if gone and original.within is not None:
        raise TrimlineError(
            f"Block {gone[0]} cannot go: a {original.within.model_type} adds features of its image after the first {original.pinned} blocks, "
            "by their number.",
            f"Keep the first {original.pinned} blocks: remove fewer, or FFN channels or KV groups instead.",
        )


def _check_within(within: Wrapper | None, profile: Profile) -> None:
    if within is not None and profile is not Profile.UNIFORM:
        raise TrimlineError(
            f"Profile '{profile.value}' needs a modelling file of its own, and the class of a {within.model_type} makes its language model itself.",
            "Use profile 'uniform', with all blocks alike.",
        )


def _check_mixture(family: Family, profile: Profile) -> None:
    if family.mixture is not None and profile is not Profile.UNIFORM:
        raise TrimlineError(
            f"Profile '{profile.value}' has no modelling file for mixtures of experts, and {family.model_type} is one.",
            "Use profile 'uniform', with all blocks alike.",
        )


def _check_choice(result: Geometry) -> None:
    """Whether a router finds as many experts as it chooses for every token.

    Raises:
        TrimlineError: it does not; says how many have to stay.
    """
    for number, block in enumerate(result.blocks):
        if result.family.routes(block.feeds):
            demand_choice(result, block.experts, f"block {number}")


_UNIFORM_KV = "Use allocation 'uniform' for kv_group."


def _check_uniform(family: Family, original: Geometry, result: Geometry, config: Mapping[str, Any]) -> None:
    for sublayer in Sublayer:
        _check_alike(result, sublayer)
    if result.ordinary(Sublayer.FFN) and not any(block.has(Sublayer.FFN) for block in result.ordinary(Sublayer.FFN)):
        raise TrimlineError(
            "Profile 'uniform' cannot express blocks without FFN.", "Keep some channels, or use profile 'decilm' or 'free'."
        )
    if result.ordinary(Sublayer.ATTENTION) and not _most_groups(result):
        raise TrimlineError("Profile 'uniform' cannot express blocks without attention.", f"Keep some KV groups. {USE_FREE}")
    if _most_groups(result) in (0, _most_groups(original)) and result.hidden == original.hidden:
        return
    _check_square(family, Profile.UNIFORM)
    heads = _most_groups(result) * result.queries_per_group
    if not accepts_heads(family, {**config, "hidden_size": result.hidden}, heads) and not is_mistral_shaped(result):
        raise TrimlineError(
            f"Stock {family.model_type} does not take {heads} query heads beside a hidden size of {result.hidden} (it divides one by "
            "the other), and this model cannot be written as mistral: it has biases, or other projections.",
            f"Keep a number of KV groups whose {result.queries_per_group} query heads each divide {result.hidden}. {USE_FREE}"
            + (" Or compensate without biases." if result.biases else ""),
        )


def _check_alike(result: Geometry, sublayer: Sublayer) -> None:
    """Whether blocks that have a sublayer of one kind keep as much of it."""
    firsts: dict[str, int] = {}
    for number, block in enumerate(result.blocks):
        before = firsts.setdefault(block.kind(sublayer), number)
        first = result.blocks[before]
        if block.units(sublayer) != first.units(sublayer) or (sublayer is Sublayer.FFN and block.experts != first.experts):
            raise TrimlineError(
                f"Profile 'uniform' needs all blocks alike: block {before} keeps {_experts_of(first)}{first.ffn} FFN channels and "
                f"{first.kv_groups} KV groups, block {number} keeps {_experts_of(block)}{block.ffn} and {block.kv_groups}.",
                "Use allocation 'uniform', or profile 'decilm' or 'free'.",
            )


def _experts_of(block: BlockShape) -> str:
    return f"{block.experts} experts, " if block.experts else ""


def _check_square(family: Family, profile: Profile) -> None:
    if family.square_attention and profile is not Profile.FREE:
        raise TrimlineError(f"Stock {family.model_type} derives head_dim from the number of heads, so no head can go.", USE_FREE)


def _check_decilm_family(family: Family, config: Mapping[str, Any]) -> None:
    if family.decilm is None:
        raise TrimlineError(f"Profile 'decilm' computes as Llama does and cannot express {family.model_type}.", USE_FREE)
    if has_sliding_window(family, config):
        raise TrimlineError("Profile 'decilm' has no sliding window, and this model attends through one.", USE_FREE)


def _check_decilm_blocks(result: Geometry) -> None:
    if not result.blocks[0].kv_groups:
        raise TrimlineError(
            "The first block loses its attention, and neither vLLM's DeciLM nor llama.cpp's deci loads that.",
            f"Keep the attention of the first block that stays. {USE_FREE}",
        )
    groups = _most_groups(result)
    for number, block in enumerate(result.blocks):
        if block.kv_groups not in (0, groups):
            raise TrimlineError(
                f"Profile 'decilm' has one number of query heads for all blocks: some keep {groups} KV groups, "
                f"block {number} keeps {block.kv_groups}.",
                f"{_UNIFORM_KV} {USE_FREE}",
            )


def _most_groups(geometry: Geometry) -> int:
    return geometry.most(Sublayer.ATTENTION)
