"""The smaller model's config.json, in the shape profile that the recipe asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.architecture.families import Family, Sublayer
from pipeline.architecture.families.mistral import MISTRAL
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.profile import Profile
from pipeline.architecture.reading import stated_count
from pipeline.checkpoints.modelling import names_for
from pipeline.checkpoints.stock import TYPES, accepts_heads, lists_of_class, per_block, values_of_class
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.biases import switches_of

# Written by loaders, quantisers or an earlier rebuild, and no longer true of the result.
STALE = ("_name_or_path", "pruned_heads", "auto_map", "block_configs", "base_model_type", "qkv_bias", "biases")

OLDER_SCALING = ("default", "linear", "dynamic", "yarn", "llama3")  # which transformers 4.57 takes as they are


def smaller_config(config: Mapping[str, Any], plan: Plan, profile: Profile) -> dict[str, Any]:
    """The config.json of the model that keeps the plan's selection.

    ``check_profile`` says beforehand whether the profile can express it, and ``for_profile`` completes the plan's
    biases; this function takes both as given.
    """
    original = Geometry.from_config(config)
    result = plan.geometry(original)
    config = {key: value for key, value in config.items() if key not in original.family.old_keys} | _renamed(config, original.family)
    stale = set(STALE) - original.switches.keys()  # Qwen2-MoE's own class has a qkv_bias
    base = {key: value for key, value in config.items() if key not in stale} | {original.family.layers_key: len(result.blocks)}
    base |= _by_block(config, plan.selection, original) | _stream(config, original, result) | _unadjusted(original.family)
    base |= _rescaled(config, original, result)
    base |= _for_older_readers(base)
    writers: dict[Profile, Callable[..., dict[str, Any]]] = {Profile.UNIFORM: _uniform, Profile.DECILM: _decilm, Profile.FREE: _free}
    return writers[profile](base, result)


def _uniform(base: dict[str, Any], result: Geometry) -> dict[str, Any]:
    family = result.family
    written = _experts(base, result) | _widths(result) | _heads(result, result.most(Sublayer.ATTENTION)) | switches_of(result)
    if accepts_heads(family, base, written[family.heads_key]):
        return written | {"model_type": family.model_type, "architectures": [f"{family.class_prefix}ForCausalLM"]}
    # The stock class ties the number of heads to the hidden size; Mistral's has the same tensors and does not.
    foreign = {"pretraining_tp"} | set(result.switches)
    kept = {key: value for key, value in written.items() if key not in foreign}
    return kept | {
        "model_type": MISTRAL.model_type,
        "architectures": [f"{MISTRAL.class_prefix}ForCausalLM"],
        "sliding_window": None,
    }


def _experts(base: dict[str, Any], result: Geometry) -> dict[str, Any]:
    """The config with its number of experts by one key alone: the one that counted in the dense model's, since others are passed over."""
    if (mixture := result.family.mixture) is None:
        return base
    key, count = stated_count(base, mixture), max(block.experts for block in result.blocks)
    return {name: value for name, value in base.items() if name not in mixture.count_keys} | {key: count}


def _widths(result: Geometry) -> dict[str, Any]:
    """Where no block has a dense FFN, the key means nothing and stays as it is."""
    key, width = result.family.ffn_key, result.most(Sublayer.FFN)
    return {key: width} if key and width else {}


def _renamed(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    return {new: config[old] for old, new in family.old_keys.items() if old in config}


def _unadjusted(family: Family) -> dict[str, Any]:
    """The width is written as it is."""
    return {} if family.adjusted is None else {family.adjusted.switch: False}


def _rescaled(config: Mapping[str, Any], original: Geometry, result: Geometry) -> dict[str, Any]:
    """A number that the class divides by the root of the depth, so that it gives what it gave."""
    key, depth = original.family.root_of_depth, len(original.blocks)
    if not key or len(result.blocks) == depth:
        return {}
    return {key: values_of_class(original, config)[key] * math.sqrt(len(result.blocks) / depth)}


def _for_older_readers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding by the keys of transformers 4 too, which the writer of transformers 5 leaves out.

    transformers 4.57 opens a config without them with its class's base and scaling, and says nothing
    (findings/rotary_base_for_an_older_reader.sh). Nothing is added where ``rope_scaling`` is there: transformers 5 takes it, and not
    ``rope_parameters``. Nor for a rotary embedding per kind of block, whose older keys are each class's own, nor for kinds of scaling that
    4.57 demands in another form.
    """
    rotary = config.get("rope_parameters")
    if not isinstance(rotary, Mapping) or "rope_theta" not in rotary or config.get("rope_scaling"):
        return {}
    scaling = {key: value for key, value in rotary.items() if key not in ("rope_theta", "partial_rotary_factor")}
    kind = scaling.get("rope_type", "default")
    if kind not in OLDER_SCALING:
        return {}
    found = {"rope_theta": rotary["rope_theta"], "partial_rotary_factor": rotary.get("partial_rotary_factor")}
    added = {key: value for key, value in found.items() if value is not None and config.get(key) is None}
    return added | {"rope_scaling": None if kind == "default" else scaling}


def _decilm(base: dict[str, Any], result: Geometry) -> dict[str, Any]:
    blocks = [_block_config(block, result.queries_per_group) for block in result.blocks]
    biases = {"qkv_bias": True} if result.family.decilm == "qkv_bias" else {}
    groups = result.most(Sublayer.ATTENTION)
    return base | _uneven(result, Profile.DECILM) | _heads(result, groups) | biases | switches_of(result) | {"block_configs": blocks}


def _free(base: dict[str, Any], result: Geometry) -> dict[str, Any]:
    blocks = [_block_config(block, result.queries_per_group) for block in result.blocks]
    for entry, block in zip(blocks, result.blocks, strict=True):
        if block.kv_groups:
            entry["attention"] |= {
                "num_key_value_heads": block.kv_groups,
                "num_attention_heads": block.kv_groups * result.queries_per_group,
            }
    head_dim = {} if result.family.square_attention else {"head_dim": result.head_dim}
    biases = {"biases": sorted(result.biases)} if result.biases else {}
    return base | _uneven(result, Profile.FREE) | head_dim | biases | {"block_configs": blocks}


def _uneven(result: Geometry, profile: Profile) -> dict[str, Any]:
    """What every config with ``block_configs`` says at its top."""
    family, names = result.family, names_for(result.family, profile)
    assert names is not None
    return {
        "model_type": names.model_type,
        "architectures": [names.model_class],
        "auto_map": names.auto_map,
        "base_model_type": family.model_type,
        # Readers that know one width only get one that no block exceeds.
        str(family.ffn_key): max(1, result.most(Sublayer.FFN)),
    }


def _stream(config: Mapping[str, Any], original: Geometry, result: Geometry) -> dict[str, Any]:
    """Width of the residual stream and, where channels went, the epsilon of its norms (see ``norm_scale``)."""
    key = original.family.norm_eps
    if result.hidden == original.hidden or key is None:
        return {}
    epsilon = config.get(key, getattr(CONFIG_MAPPING[original.family.model_type](), key))
    return {"hidden_size": result.hidden, key: epsilon * original.hidden / result.hidden}


def _heads(result: Geometry, groups: int) -> dict[str, Any]:
    family = result.family
    if not groups:  # no block has heads that are described: what the config says of others stays
        return {}
    heads = {family.heads_key: groups * result.queries_per_group}
    if family.kv_heads_key is not None:
        heads[family.kv_heads_key] = groups
    return heads if family.square_attention else heads | {"head_dim": result.head_dim}


def _block_config(block: BlockShape, queries_per_group: int) -> dict[str, dict[str, Any]]:
    """A mixer or an FFN of another kind than the ordinary one has no sizes of its own, and its kind is named."""
    attention, ffn = block.units(Sublayer.ATTENTION), block.units(Sublayer.FFN)
    entry: dict[str, dict[str, Any]] = {
        "attention": {"no_op": not block.has(Sublayer.ATTENTION), "n_heads_in_group": queries_per_group if attention else None},
        "ffn": {"no_op": not block.has(Sublayer.FFN), "intermediate_size": ffn or None},
    }
    for sublayer in Sublayer:
        if not block.is_ordinary(sublayer):
            entry[sublayer.value]["kind"] = block.kind(sublayer)
    return entry


def _by_block(config: Mapping[str, Any], selection: Selection, original: Geometry) -> dict[str, Any]:
    """Lists and thresholds by block, restricted to the kept ones; where the stock class would work out others, those that it must take."""
    lists = per_block(config, len(original.blocks))
    changed: dict[str, Any] = {key: _kept(key, values, selection, original) for key, values in lists.items()}
    for rule in original.family.kinds.rules:
        changed |= rule.after(config, selection.blocks)
    threshold = config.get("max_window_layers")
    if isinstance(threshold, int) and threshold < len(original.blocks):
        changed["max_window_layers"] = sum(block < threshold for block in selection.blocks)
    if len(selection.blocks) == len(original.blocks):
        return changed
    worked_out = lists_of_class(original, config, len(original.blocks))
    by_itself = lists_of_class(original, {**config, **changed}, len(selection.blocks))
    for key in worked_out.keys() - changed.keys():
        if (kept := _kept(key, worked_out[key], selection, original)) != by_itself.get(key):
            changed[key] = kept
    return changed


def _kept(key: str, values: list[Any], selection: Selection, original: Geometry) -> list[Any]:
    return _kept_types(values, selection, original) if key in TYPES else [values[block] for block in selection.blocks]


def _kept_types(types: list[str], selection: Selection, original: Geometry) -> list[str]:
    # A block that lost its attention takes a type that is in use, so that the first cache layer of every type is in use.
    had = [block.is_ordinary(Sublayer.ATTENTION) for block in original.blocks]
    lost = {block for block in selection.blocks if had[block] and not selection.kv_groups[block]}
    in_use = next((types[block] for block in selection.blocks if selection.kv_groups[block]), None)
    return [types[block] if block not in lost or in_use is None else in_use for block in selection.blocks]
