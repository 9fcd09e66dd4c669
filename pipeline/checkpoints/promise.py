"""What a config promises against what a folder holds: names, shapes and types of tensors, from headers alone.

transformers makes up what is missing, drops what is unexpected, and refers to a report that is not shown for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.architecture.families import Linear
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.quantised import FLOATS
from pipeline.checkpoints.stored import StoredTensor
from pipeline.checkpoints.weight_files import MERGE, SINGLE
from pipeline.common.errors import TrimlineError, shown

Held = Mapping[str, StoredTensor]
LORA = re.compile(r"\blora_|\.base_layer\.")
OTHER_MODEL = "Its config describes another model than its weights"
LEFT_OUT = "Where they are not wanted, AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) leaves them out"


def check_size(folder: Path, geometry: Geometry, held: int, size: int) -> None:
    """Refuses a config that describes a far larger model than there are weights, before it is counted through or made.

    Args:
        folder: for the sentence.
        geometry: of the config.
        held: tensors in the files that are read.
        size: bytes of those files.
    """
    named = sum(1 for _ in geometry.tensors())
    if named > 2 * held + 16:
        raise TrimlineError(f"config.json of {folder} describes {named:,} tensors, and the folder holds {held:,}.", f"{OTHER_MODEL}.")
    if (parameters := geometry.total_parameters()) > 8 * size:
        raise TrimlineError(
            f"config.json of {folder} describes {shown(parameters)} parameters, and the weights have {size:,} bytes.", f"{OTHER_MODEL}."
        )


def check_tensors(folder: Path, geometry: Geometry, held: Held, index: Mapping[str, str]) -> None:
    """Compares names, shapes and types with what the geometry promises.

    Args:
        folder: for the sentence.
        geometry: of the config, its head as the weights have it.
        held: every tensor by its canonical name.
        index: tensor to file, of an index in the folder; for the remedy.

    Raises:
        TrimlineError: names the first tensor that is missing, misshapen, no float or unexpected, and how many are.
    """
    promised = dict(geometry.tensors())
    unexpected = sorted(set(held) - set(promised))
    if lora := [name for name in unexpected if LORA.search(name)]:
        raise TrimlineError(
            f"{folder} holds tensors of an adapter inside its weights (first {held[lora[0]].name}), which no model of {geometry.family.model_type} has.",
            f"Merge it with peft before you save: {MERGE}.",
        )
    missing = [name for name in promised if name not in held]
    if missing:
        raise _missing(folder, geometry, missing, unexpected, index)
    misshapen = [name for name, shape in promised.items() if held[name].shape != shape]
    if misshapen:
        raise _misshapen(folder, geometry, misshapen, held, promised)
    if other := [name for name in promised if held[name].dtype not in FLOATS]:
        raise TrimlineError(
            f"The tensor {other[0]} of {folder} has type {held[other[0]].dtype}, and weights are {', '.join(FLOATS)}.",
            "Store it as a float, or take the checkpoint from where it came.",
        )
    if unexpected:
        raise _unexpected(folder, geometry, unexpected, held)


def check_special_tokens(folder: Path, config: Mapping[str, Any], geometry: Geometry) -> None:
    """Refuses a pad token beyond the token table, of which no class can make a model.

    Raises:
        TrimlineError: names the id, the table's rows and the key.
    """
    pad = config.get("pad_token_id")
    if isinstance(pad, int) and not isinstance(pad, bool) and not -geometry.vocab <= pad < geometry.vocab:
        raise TrimlineError(
            f"config.json of {folder} says pad_token_id: {shown(pad)}, and its token table has {geometry.vocab} rows (0 to {geometry.vocab - 1}).",
            "Set pad_token_id to null or to the id of the end token, or give the table more rows with resize_token_embeddings.",
        )


def _missing(folder: Path, geometry: Geometry, missing: list[str], unexpected: list[str], index: Mapping[str, str]) -> TrimlineError:
    first, promised = missing[0], dict(geometry.tensors())
    many = f"; {len(missing):,} of {len(promised):,} tensors are missing" if len(missing) > 1 else ""
    problem = f"{folder} holds no tensor {first} of shape {promised[first]}, which its config.json describes{many}."
    if missing == [f"{geometry.family.head}.weight"]:
        return TrimlineError(problem, "If its head is its token table, say tie_word_embeddings: true in config.json; else fetch the head.")
    short = first.removeprefix(geometry.family.blocks.partition(".")[0] + ".")
    foreign = next((name for name in unexpected if name.endswith("." + short)), None)
    if foreign is not None:
        prefix = foreign.removesuffix(first) if foreign.endswith(first) else foreign.removesuffix(short)
        return TrimlineError(problem, f"It holds {foreign}: save the weights without {prefix!r} before their names.")
    if first not in index:
        return TrimlineError(problem, f"{OTHER_MODEL}, or a part of it was not fetched.")
    if (folder / SINGLE).is_file() and index[first] != SINGLE:
        said = f"Its index says that {index[first]} holds it, which transformers does not read beside {SINGLE}"
        return TrimlineError(problem, f"{said}: give {SINGLE} another name, in the index too.")
    return TrimlineError(problem, f"Its index says that {index[first]} holds it: fetch the checkpoint again.")


def _misshapen(
    folder: Path, geometry: Geometry, misshapen: list[str], held: Held, promised: Mapping[str, tuple[int, ...]]
) -> TrimlineError:
    first = misshapen[0]
    many = f" ({len(misshapen):,} tensors have other shapes than it says)" if len(misshapen) > 1 else ""
    tables = {f"{geometry.family.embeddings[0]}.weight", f"{geometry.family.head}.weight"}
    rows = {held[name].shape[0] if held[name].shape else 0 for name in misshapen}
    widths_agree = all(held[name].shape[1:] == promised[name][1:] for name in misshapen)
    remedy = f"{OTHER_MODEL}: give the config that its maker wrote for it, or the model before it was cut."
    if set(misshapen) <= tables and len(rows) == 1 and widths_agree:
        remedy = f"If the table has more rows than the vocabulary has tokens, say vocab_size: {rows.pop()} in config.json."
    return TrimlineError(
        f"The tensor {first} of {folder} has shape {held[first].shape}, and its config says {promised[first]}{many}.", remedy
    )


def _unexpected(folder: Path, geometry: Geometry, unexpected: list[str], held: Held) -> TrimlineError:
    first, family = held[unexpected[0]].name, geometry.family
    many = f" and {len(unexpected) - 1:,} more" if len(unexpected) > 1 else ""
    problem = f"{folder} holds {first}{many}, which its config.json does not describe"
    beyond = [int(found.group(1)) for name in unexpected if (found := re.match(rf"{re.escape(family.blocks)}\.(\d+)\.", name))]
    blocks = len(geometry.blocks)
    if beyond and min(beyond) >= blocks:
        return TrimlineError(
            f"{problem}: it says {family.layers_key}: {blocks}, and the weights go on to block {max(beyond)}.",
            f"Say {family.layers_key}: {max(beyond) + 1} if these blocks belong to it. {LEFT_OUT}.",
        )
    biases = {name for name in unexpected if name.endswith(".bias") and name.startswith(family.blocks)}
    if biases:
        return TrimlineError(f"{problem}: biases that no key of it announces.", _announce(geometry, biases))
    return TrimlineError(f"{problem}: it is no part of {family.model_type} as a causal language model.", f"{LEFT_OUT}.")


def _announce(geometry: Geometry, biases: set[str]) -> str:
    """The key that would announce exactly these biases, where there is one."""
    for key in geometry.switches:
        behind = [linear for linear in geometry.family.linears if linear.bias == key]
        if biases == {f"{module}.bias" for module in _modules(geometry, behind)}:
            return f"Say {key}: true in config.json."
    return f"{geometry.family.model_type} has no key for these alone: prune its dense model with Trimline's own method, which writes a config that has. {LEFT_OUT}."


def _modules(geometry: Geometry, linears: list[Linear]) -> list[str]:
    return [
        geometry.family.module(number, linear.name)
        for number, block in enumerate(geometry.blocks)
        for linear in linears
        if block.units(linear.sublayer)
    ]
