"""What the rebuilt folder says beside its weights, against the source: config, generation, tokenizer, companion files.

``changes_of`` is the table of the keys of config.json that a plan and a profile change on purpose, and what they must be then. It is
worked out here from the plan and the source, and shares nothing with ``pipeline.rebuild.config``, which writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.architecture.families import Family, Sublayer
from pipeline.architecture.families.mistral import MISTRAL
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.modelling import names_for, profile_of
from pipeline.checkpoints.nested import TEXT, TIE, Nested, nested
from pipeline.checkpoints.stock import TYPES, decoded
from pipeline.common.errors import GateError
from pipeline.common.files import read_json
from pipeline.evaluate.settings import ABSENT, CONFIG, Changes, MayBe, Within, demand_same_config, demand_same_generation
from pipeline.evaluate.tokenizers import OURS, demand_same_tokenizer
from pipeline.plan.plan import Plan
from pipeline.rebuild.tokenizer import CLASS, SETTINGS
from pipeline.sources.companions import companions

GONE = MayBe((ABSENT,))
OF_UNEVEN = ("auto_map", "block_configs", "base_model_type", "qkv_bias", "biases")  # keys that a uniform folder has none of
OF_OTHERS = ("_id", "_ids", "_idxs", "_multipliers", "_limit")  # lists that say nothing of blocks, however long
ANY = MayBe((ABSENT,), lambda value: True)


def demand_settings(source: Path, plan: Plan, out: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Compares all that is no weight.

    Args:
        source: the dense checkpoint's folder.
        plan: with the biases that its profile needs.
        out: the rebuilt folder.
        trust_remote_code: as for loading a model.

    Returns:
        What was compared, for gate.json.

    Raises:
        GateError: something is missing or says other things than it should.
    """
    dense, written = read_json(source / CONFIG), read_json(out / CONFIG)
    inside = nested(dense)
    changes: Changes = changes_of(dense, written, plan) if inside is None else _changes_around(inside, written, plan)
    keys = demand_same_config(source, out, changes, trust_remote_code)
    return {"config keys": keys} | demand_companions(source, out, trust_remote_code)


def demand_companions(source: Path, out: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """Compares what comes along with weights, byte by byte; and generation config and tokenizer as transformers opens them.

    Raises:
        GateError: something is missing or another.
    """
    files = companions(source).taken
    missing = next((name for name in files if not (out / name).is_file()), None)
    if missing is not None:
        raise GateError(f"{source} has {missing}, and {out} has not.", OURS)
    generation, tokenizer = demand_same_generation(source, out), demand_same_tokenizer(source, out, trust_remote_code)
    changed = next((name for name in files if _content(out / name) != _content(source / name)), None)
    if changed is not None:
        raise GateError(f"{out / changed} is not the {changed} of {source}.", OURS)
    return {"companion files": len(files), "generation config": generation, "tokenizer": tokenizer}


def _content(path: Path) -> Any:
    """What a file holds; of a tokenizer's settings without the name of its class (``name_tokenizer_class``), which the opened ones tell."""
    return {key: value for key, value in read_json(path).items() if key != CLASS} if path.name == SETTINGS else path.read_bytes()


def changes_of(dense: Mapping[str, Any], written: Mapping[str, Any], plan: Plan) -> dict[str, MayBe]:
    """The keys of config.json that differ on purpose, and what they must be.

    Args:
        dense: config.json of the source.
        written: of the result; only its form (profile, stock class) is taken as it says, the gate opens it as that.
        plan: with the biases that its profile needs.
    """
    original = Geometry.from_config(dense)
    result, profile = plan.geometry(original), profile_of(written)
    changes = _sizes(original, result, profile) | _stream(dense, original, result) | _blocks(dense, original, plan)
    changes |= dict.fromkeys(original.family.old_keys, GONE)
    if (key := original.family.root_of_depth) and dense.get(key) is not None:
        wanted = dense[key] * math.sqrt(len(result.blocks) / len(original.blocks))
        changes[key] = MayBe(fits=lambda value: math.isclose(value, wanted))
    changes |= _rotary(dense) | _names(result, profile) | dict.fromkeys(("pruned_heads", "quantization_config"), ANY)
    if profile is Profile.UNIFORM and written.get("model_type") == MISTRAL.model_type != original.family.model_type:
        names = {"model_type": MISTRAL.model_type, "architectures": [f"{MISTRAL.class_prefix}ForCausalLM"], "sliding_window": None}
        changes |= {key: MayBe((value,)) for key, value in names.items()}
        changes |= dict.fromkeys(("pretraining_tp", *original.switches), GONE)
    if profile is not Profile.FREE:
        changes |= {str(ln.bias): MayBe((True,)) for ln in original.family.linears if ln.name in plan.biases and isinstance(ln.bias, str)}
    # A head of its own that the source's config denies is a head of its own in the result; the gate compares the models.
    return changes | {"tie_word_embeddings": MayBe((dense.get("tie_word_embeddings", ABSENT), original.tied, False))}


def _rotary(dense: Mapping[str, Any]) -> dict[str, MayBe]:
    """The keys of transformers 4, where the source has those of transformers 5 alone: they say what these say."""
    stated = dense.get("rope_parameters")
    if not isinstance(stated, Mapping) or "rope_theta" not in stated or dense.get("rope_scaling"):
        return {}
    others = {key: value for key, value in stated.items() if key not in {"rope_theta", "partial_rotary_factor"}}
    plain = others.get("rope_type") in (None, "default")
    base, part = (MayBe((dense.get(key, ABSENT), stated.get(key))) for key in ("rope_theta", "partial_rotary_factor"))
    return {
        "rope_theta": base,
        "partial_rotary_factor": part,
        "rope_scaling": MayBe((dense.get("rope_scaling", ABSENT), None if plain else others)),
    }


def _changes_around(dense: Nested, written: Mapping[str, Any], plan: Plan) -> dict[str, MayBe | Within]:
    """``changes_of`` where the language model's config is nested: all around it stays, and inside its own rules hold."""
    before, inside = dense.whole[TEXT], written.get(TEXT)
    inside = inside if isinstance(inside, dict) else {}
    own = changes_of(dense.text, inside, plan) | {"architectures": ANY, TIE: ANY}
    if inside.get("model_type") == before.get("model_type"):  # which stands for the family, or is its name
        del own["model_type"]
    # What config.json leaves to the classes is looked at as they fill it in.
    own = {key: may if key in before else MayBe((*may.values, ABSENT), may.fits) for key, may in own.items()}
    tied = MayBe((dense.whole.get(TIE, ABSENT), dense.text[TIE], False))
    return {TEXT: Within(own), TIE: tied}


def _sizes(original: Geometry, result: Geometry, profile: Profile) -> dict[str, MayBe]:
    family, width, groups = result.family, result.most(Sublayer.FFN), result.most(Sublayer.ATTENTION)
    sizes: dict[str, Any] = {family.layers_key: len(result.blocks)}
    if family.ffn_key and (width or profile is not Profile.UNIFORM):
        sizes[family.ffn_key] = max(1, width)
    if family.adjusted is not None:
        sizes[family.adjusted.switch] = False
    if profile is not Profile.FREE and groups:
        sizes |= {family.heads_key: groups * original.queries_per_group}
        sizes |= {} if family.kv_heads_key is None else {family.kv_heads_key: groups}
    changes = {key: MayBe((value,)) for key, value in sizes.items()}
    if family.mixture is not None:  # an alias beside the key that counts is passed over by transformers, so it may only agree
        count = max(block.experts for block in result.blocks)
        changes |= {key: MayBe((count, ABSENT)) for key in family.mixture.count_keys}
    return changes | ({} if family.square_attention else {"head_dim": MayBe((original.head_dim,))})


def _stream(dense: Mapping[str, Any], original: Geometry, result: Geometry) -> dict[str, MayBe]:
    key = original.family.norm_eps
    if result.hidden == original.hidden or key is None:
        return {}
    wider = original.hidden / result.hidden
    # Where config.json leaves ε to the stock class, the gate over the logits says whether it is right.
    epsilon = dense.get(key)
    fits = (lambda value: isinstance(value, float)) if epsilon is None else (lambda value: math.isclose(value, epsilon * wider))
    return {"hidden_size": MayBe((result.hidden,)), key: MayBe(fits=fits)}


def _blocks(dense: Mapping[str, Any], original: Geometry, plan: Plan) -> dict[str, MayBe]:
    """Lists and thresholds by block, which lose what their blocks lose."""
    kept, threshold, depth = plan.selection.blocks, dense.get("max_window_layers"), len(original.blocks)
    # What a list by block was worked out from says nothing once the list is stated.
    told = {key for rule in original.family.kinds.rules for key in rule.keys}
    changes = {key: MayBe((dense.get(key, ABSENT), ABSENT)) for key in told}
    for key, values in _lists(dense, original.family).items():
        if len(values) == depth and not key.endswith(OF_OTHERS) and not key.startswith("mtp_") and key != "architectures":
            wanted = [values[block] for block in kept]
            fits = _types_fit(values, dense.get(key) or values, plan, original) if key in TYPES else wanted.__eq__
            # What config.json leaves out is looked at as the class works it out.
            changes[key] = MayBe(() if key in dense else (ABSENT,), fits)
    if isinstance(threshold, int) and threshold < len(original.blocks):
        changes["max_window_layers"] = MayBe((sum(block < threshold for block in kept),))
    return changes | {key: MayBe((value,)) for rule in original.family.kinds.rules for key, value in rule.after(dense, kept).items()}


def _lists(dense: Mapping[str, Any], family: Family) -> dict[str, list[Any]]:
    """Lists in a config, with those that the stock class adds; of a folder written here, those that it states."""
    found = dict(dense)
    if "block_configs" not in dense:
        found |= json.loads(CONFIG_MAPPING[family.model_type](**decoded(dense)).to_json_string(use_diff=False))
    return {key: value for key, value in found.items() if isinstance(value, list)}


def _types_fit(types: list[str], stated: list[str], plan: Plan, original: Geometry) -> Callable[[Any], bool]:
    """Every block whose mixer stays has the type that it had, in today's word for it or in that of the source; of one that lost its
    attention, the type says nothing."""
    selection = plan.selection
    has = [selection.kv_groups[number] or not block.is_ordinary(Sublayer.ATTENTION) for number, block in enumerate(original.blocks)]

    def fits(found: Any) -> bool:
        if not isinstance(found, list) or len(found) != len(selection.blocks):
            return False
        pairs = zip(selection.blocks, found, strict=True)
        return all(kind in (types[block], stated[block]) if has[block] else kind in (*types, *stated) for block, kind in pairs)

    return fits


def _names(result: Geometry, profile: Profile) -> dict[str, MayBe]:
    family, names = result.family, names_for(result.family, profile)
    if names is None:
        gone = [key for key in OF_UNEVEN if key not in result.switches]  # Qwen2-MoE's own class has a qkv_bias
        stock = {"model_type": family.model_type, "architectures": [f"{family.class_prefix}ForCausalLM"]}
        return dict.fromkeys(gone, GONE) | {key: MayBe((value,)) for key, value in stock.items()}
    sure = {"model_type": names.model_type, "architectures": [names.model_class], "base_model_type": family.model_type}
    changes = {key: MayBe((value,)) for key, value in sure.items()}
    changes["auto_map"] = MayBe((names.auto_map,))
    changes["block_configs"] = MayBe(fits=lambda entries: _entries_fit(entries, result))
    biases = sorted(result.biases) or None
    changes["biases"] = MayBe((biases,) if profile is Profile.FREE and biases else (ABSENT, None))
    changes["qkv_bias"] = MayBe((True,)) if profile is Profile.DECILM and family.decilm == "qkv_bias" else GONE
    return changes


def _entries_fit(entries: Any, result: Geometry) -> bool:
    """Whether ``block_configs`` tells of each block what it has."""
    if not isinstance(entries, list) or len(entries) != len(result.blocks):
        return False
    return all(_entry_fits(entry, block, result.queries_per_group) for entry, block in zip(entries, result.blocks, strict=True))


def _entry_fits(entry: Any, block: BlockShape, queries: int) -> bool:
    attention, ffn = entry["attention"], entry["ffn"]
    heads = attention["n_heads_in_group"] is None if not block.kv_groups else attention["n_heads_in_group"] == queries
    groups = attention.get("num_key_value_heads", block.kv_groups) == block.kv_groups
    absent = (attention["no_op"], ffn["no_op"]) == tuple(not block.has(part) for part in (Sublayer.ATTENTION, Sublayer.FFN))
    kinds = [entry[part.value].get("kind", part.ordinary) for part in Sublayer] == [block.kind(part) for part in Sublayer]
    return kinds and heads and groups and absent and ffn["intermediate_size"] == (block.ffn or None)
