"""Whether a folder says of its model what the checkpoint says that it was made from: config.json and generation_config.json.

Both are looked at as files, which is what other programs read, and as transformers opens them, with what it fills in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from pipeline.common.errors import GateError, TrimlineError, shown
from pipeline.common.files import read_json
from pipeline.evaluate.tokenizers import OURS
from pipeline.live.loading import as_trimline_error, quiet_transformers, trusts

CONFIG = "config.json"
GENERATION = "generation_config.json"
OF_THE_LIBRARY = ("_name_or_path", "transformers_version")  # where it was read from, and by what


class _Absent:
    """The value of a key that is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True)
class MayBe:
    """What a key may be that differs on purpose.

    Attributes:
        values: any of these.
        fits: or what this is true of.
    """

    values: tuple[Any, ...] = ()
    fits: Callable[[Any], bool] = lambda value: False

    def __call__(self, value: Any) -> bool:
        return any(value is one or (value == one and type(value) is type(one)) for one in self.values) or (
            value is not ABSENT and self.fits(value)
        )


@dataclass(frozen=True)
class Within:
    """A key that holds keys of which some differ on purpose.

    Attributes:
        changes: these, and what they must be.
    """

    changes: Mapping[str, MayBe]


Changes = Mapping[str, MayBe | Within]


def demand_same_config(source: Path, result: Path, changes: Changes, trust_remote_code: bool = False) -> int:
    """Compares every key of two config.json.

    Args:
        source: the checkpoint that ``result`` was made from.
        result: a folder.
        changes: the keys that differ on purpose, and what they must be.
        trust_remote_code: as for loading a model.

    Returns:
        How many keys were compared.

    Raises:
        GateError: a key differs that should not, or differs in another way than it should.
        TrimlineError: transformers opens one of them not.
    """
    compared = set[str]()
    for read in (lambda folder: json.loads(json.dumps(read_json(folder / CONFIG))), lambda folder: _opened(folder, trust_remote_code)):
        theirs, ours = read(source), read(result)
        compared |= theirs.keys() | ours.keys()
        for what in _differences(theirs, ours, changes):
            raise GateError(f"{result / CONFIG} says other things than {source / CONFIG}: {what}.", OURS)
    return len(compared)


def demand_same_generation(source: Path, result: Path) -> str:
    """Compares generation_config.json, with its end-of-text ids and sampling values.

    Returns:
        What was compared, in words for a record.

    Raises:
        GateError: it is missing, was invented, or says other things.
    """
    present = [(folder / GENERATION).is_file() for folder in (source, result)]
    if present[0] != present[1]:
        there, missing = (source, result) if present[0] else (result, source)
        raise GateError(f"{there} has a {GENERATION} and {missing} has none.", OURS)
    if not present[0]:
        return "neither has one"
    for read in (lambda folder: read_json(folder / GENERATION), _generation):
        for what in _differences(read(source), read(result), {}):
            raise GateError(f"{result / GENERATION} says other things than {source / GENERATION}: {what}.", OURS)
    return "the same"


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], changes: Changes) -> Iterator[str]:
    for key in sorted(theirs.keys() | ours.keys()):
        before, now = theirs.get(key, ABSENT), ours.get(key, ABSENT)
        if key in OF_THE_LIBRARY or (before == now and type(before) is type(now) and key not in changes):
            continue
        change = changes.get(key)
        if isinstance(change, Within) and isinstance(before, dict) and isinstance(now, dict):
            yield from (f"{key}.{what}" for what in _differences(before, now, change.changes))
        elif not isinstance(change, MayBe):
            yield f"{key} is {shown(now)} and not {shown(before)}"
        elif not change(now):
            wanted = ", ".join(shown(value) for value in change.values) or "what follows from the plan"
            yield f"{key} is {shown(now)} where it must be {wanted}"


def _opened(folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    trust = trusts(folder, read_json(folder / CONFIG), trust_remote_code)
    with quiet_transformers(), as_trimline_error(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        return json.loads(config.to_json_string(use_diff=False))


def _generation(folder: Path) -> dict[str, Any]:
    try:
        with quiet_transformers(), as_trimline_error(folder):
            return GenerationConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except TrimlineError:  # values that transformers refuses: as files the two are the same
        return {}
