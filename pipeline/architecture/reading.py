"""Sizes, kinds and switches as a config.json states them; what cannot be is refused with the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.architecture.families import ATTENTION, DENSE, Family, Mixture
from pipeline.architecture.families.kinds import size_keys, switches_in
from pipeline.architecture.shapes import BlockShape, Routing
from pipeline.common.errors import TrimlineError, shown

MOST = 2**31  # of any size; beyond it a config is damaged, and counting with it would fill the memory
STRETCHED = ("linear", "dynamic", "yarn")  # rotary embeddings that reach as many times as far as their factor says
MOST_BLOCKS = 2**12  # counting tensors takes a hundred microseconds per block


def todays_keys(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A config with defaults for what it leaves out, and keys of older folders by today's names; what has both means the old one."""
    renamed = {new: config[old] for old, new in family.old_keys.items() if old in config}
    return {**family.defaults, **{key: value for key, value in config.items() if key not in family.old_keys}, **renamed}


def block_shapes(config: Mapping[str, Any], family: Family, groups: int) -> tuple[BlockShape, ...]:
    """The shape of every block.

    Args:
        config: with ``todays_keys``.
        family: says which kind each is of.
        groups: KV groups of the dense model.

    Raises:
        TrimlineError: sizes or kinds that no model has.
    """
    if "block_configs" not in config:
        blocks = size_of(config, family.layers_key, _listed(config, family), most=MOST_BLOCKS)
        kinds = tuple(_kinds(config, family, number) for number in range(blocks))
        width = _width(config, family) if any(ffn == DENSE for _, ffn in kinds) else 0
        sizes = {ATTENTION: groups, DENSE: width}
        experts, none = _experts(config, family), (0, 0)
        return tuple(
            BlockShape(sizes.get(ffn, 0), sizes.get(mixer, 0), mixer, ffn, *(experts if family.routes(ffn) else none))
            for mixer, ffn in kinds
        )
    heads = size_of(config, family.heads_key)
    try:
        entries = list(enumerate(config["block_configs"]))
        shapes = tuple(_block_shape(entry, heads, *_kinds(config, family, number)) for number, entry in entries)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise bad("block_configs", f"an entry cannot be read ({type(error).__name__}: {error})") from None
    if not shapes or any(not 0 <= size <= MOST for shape in shapes for size in (shape.ffn, shape.kv_groups)):
        raise bad("block_configs", "it is empty or holds sizes that no model has")
    return shapes


def size_values(config: Mapping[str, Any], family: Family) -> dict[str, int]:
    """The config keys that sizes of carried tensors are worked out from."""
    there = [part for part in family.carried if all(bool(config.get(key)) is wanted for key, wanted in switches_in(part.when).items())]
    sizes = [size for part in there for size in part.shape]
    sizes += [size for cost in family.kinds.costs.values() for size in cost.sizes]
    return {key: size_of(config, key) for key in sorted({key for size in sizes for key in size_keys(size)})}


def _listed(config: Mapping[str, Any], family: Family) -> int | None:
    """How many blocks a list of kinds names, for families whose config does not count them."""
    lists = (config.get(key) for rule in family.kinds.rules for key in rule.keys)
    return next((len(found) for found in lists if isinstance(found, list | str)), None)


def _kinds(config: Mapping[str, Any], family: Family, block: int) -> tuple[str, str]:
    try:
        return family.kinds.of(config, block)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        keys = " or ".join(dict.fromkeys(key for rule in family.kinds.rules for key in rule.keys))
        named = f"{error} is no kind of block that {family.model_type} is described with"
        said = named if isinstance(error, KeyError) else f"it does not say of which kind block {block} is ({type(error).__name__}: {error})"
        raise bad(keys, said) from None


def _width(config: Mapping[str, Any], family: Family) -> int:
    """Channels that every token goes through."""
    if family.ffn_key is None:
        keys = () if family.mixture is None else family.mixture.shared_keys
        return math.prod(size_of(config, key) for key in keys) if keys else 0
    stated = size_of(config, family.ffn_key)
    return stated if family.adjusted is None else family.adjusted.width(config, stated)


def _experts(config: Mapping[str, Any], family: Family) -> tuple[int, int]:
    """How many, and how wide."""
    if family.mixture is None:
        return 0, 0
    return size_of(config, stated_count(config, family.mixture)), size_of(config, family.mixture.width_key)


def stated_count(config: Mapping[str, Any], mixture: Mixture) -> str:
    """The key by which a config says how many experts there are: of several the one that counts."""
    return next((key for key in mixture.count_keys if config.get(key) is not None), mixture.count_keys[0])


def routing_of(config: Mapping[str, Any], family: Family) -> Routing:
    """How the family's mixture chooses.

    Raises:
        TrimlineError: more experts are chosen than there are, or groups do not divide them.
    """
    if (mixture := family.mixture) is None:
        return Routing()
    chosen, experts = size_of(config, mixture.chosen_key), size_of(config, stated_count(config, mixture))
    if chosen > experts:
        raise bad(mixture.chosen_key, f"{chosen} experts are chosen of {experts}")
    if mixture.groups_key is None:
        return Routing(chosen)
    groups = size_of(config, mixture.groups_key, default=1)
    if experts % groups:
        raise bad(mixture.groups_key, f"{groups} groups do not divide the {experts} experts")
    return Routing(chosen, groups, size_of(config, mixture.chosen_groups_key, default=1))


def biases_of(config: Mapping[str, Any], family: Family) -> frozenset[str]:
    """Projections that have a bias whatever the family says, of a config written here; others may mean something else by that key."""
    named = config.get("biases") if "block_configs" in config else None
    if named is None:
        return frozenset()
    known = {linear.name for linear in family.linears}
    if not isinstance(named, list) or not all(isinstance(name, str) and name in known for name in named):
        raise bad("biases", f"it is no list of projections of {family.model_type}")
    return frozenset(named)


def context_of(config: Mapping[str, Any]) -> int:
    """What max_position_embeddings says; where a rotary embedding is stretched by a factor, what the stretched one reaches.

    Some configs state the context after stretching, others before it (Qwen2.5's YaRN), so the larger of the two is taken.
    """
    stated, scaling = config.get("max_position_embeddings"), config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(stated, bool) or not isinstance(stated, int) or stated <= 0:
        return 0
    if not isinstance(scaling, dict) or (scaling.get("rope_type") or scaling.get("type")) not in STRETCHED:
        return stated
    factor, before = scaling.get("factor"), scaling.get("original_max_position_embeddings") or stated
    if not (isinstance(factor, int | float) and isinstance(before, int | float) and 0 < factor <= MOST and 0 < before <= MOST):
        return stated
    return max(stated, int(before * factor))


def _block_shape(entry: Mapping[str, Any], heads: int, mixer: str, ffn_kind: str) -> BlockShape:
    attention, ffn = entry["attention"], entry["ffn"]
    # `free` states its KV groups; `decilm` only says how many query heads share one.
    groups = attention.get("num_key_value_heads")
    if groups is None and not attention["no_op"] and mixer == ATTENTION:
        groups = heads // attention["n_heads_in_group"]
    return BlockShape(
        ffn=0 if ffn["no_op"] or ffn_kind != DENSE else int(ffn["intermediate_size"]),
        kv_groups=0 if attention["no_op"] or mixer != ATTENTION else int(groups),
        mixer=mixer,
        feeds=ffn_kind,
    )


def size_of(config: Mapping[str, Any], key: str, default: int | None = None, most: int = MOST) -> int:
    """A size that a config states.

    Raises:
        TrimlineError: it is missing, not an integer, not positive or absurd.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise bad(key, f"it is {shown(value)}, not a positive integer")
    if value > most:
        raise bad(key, f"it is {shown(value)}, more than any model has")
    return value


def bad(key: str, why: str) -> TrimlineError:
    """What is said of a key that cannot be."""
    return TrimlineError(f"config.json has an unusable {key}: {why}.", "Fetch the checkpoint again or correct its config.")
