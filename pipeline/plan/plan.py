"""The decision of the prune stage, on disk: what stays, in the original numbering, what was updated, and why.

``plan.json`` is for people and for diffs; ``updates.safetensors`` holds every tensor whose values changed, in its
final shape, under its original name; ``scores.safetensors`` holds each step's score per unit, so that another
budget needs no new measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.architecture.families import Family, family_named
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError, shortened, shown
from pipeline.common.files import read_json, write_json
from pipeline.plan.folder import PLAN, SCORES, UPDATES
from pipeline.plan.selection import Selection, _checked
from pipeline.tensors.changes import Selected
from pipeline.tensors.tensorfile import save_one_by_one, save_tensors

FORMAT = 1
MOST_UNITS = 2**20  # of one space, and in all lists of a plan together: a plan that somebody else wrote must not fill the memory
MOST_LISTED = 2**26
LARGEST_PLAN = 512 * 2**20  # bytes; forty shots list their units forty times
_shared: list[int] = []  # 0, 1, 2 …: many lists of the same numbers, each number in memory once


@dataclass(frozen=True)
class Step:
    """One round of measure, score, allocate, compensate.

    Attributes:
        title: what a person calls it, such as ``cfsp on ffn``.
        recipe: the slice of the recipe that asked for it.
        kept: space name (``ffn.3``, ``kv_group.0``, ``layer``, ``residual``) to ascending kept units in the original numbering.
        facts: why: block importances, requested fractions, thresholds, tokens seen; JSON-compatible.
        usage: how many calibration tokens chose each routed expert of a block, shape (E,), where that was counted; ``Plan.scores`` keeps it.
    """

    title: str
    recipe: Mapping[str, Any]
    kept: Mapping[str, tuple[int, ...]]
    facts: Mapping[str, Any]
    usage: Mapping[int, torch.Tensor] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Plan:
    """Everything the prune stage decided about one model.

    Attributes:
        family: the architecture.
        selection: what stays.
        steps: the rounds, in order.
        updates: tensors whose values changed, in their final shape, under their original names.
        scores: per step, space and block, and how often experts were chosen (``pipeline.architecture.names``).
        sparse: tensors whose single weights were pruned, with the pattern; the zeros of the update are the mask.
        biases: projections, by their names inside a block, that get a bias in every block which the dense model has not;
            where no update says otherwise it is zero.
    """

    family: Family
    selection: Selection
    steps: tuple[Step, ...]
    updates: Mapping[str, torch.Tensor] = field(default_factory=dict)
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sparse: Mapping[str, str] = field(default_factory=dict)
    biases: tuple[str, ...] = ()

    def geometry(self, original: Geometry) -> Geometry:
        """Sizes and biases of the model that this plan makes of ``original``."""
        return replace(self.selection.geometry(original), biases=original.biases | set(self.biases))

    def write(self, folder: Path) -> None:
        """Writes plan.json, updates.safetensors and scores.safetensors; same plan, same bytes."""
        document = {
            "format": FORMAT,
            "family": self.family.model_type,
            "blocks": _ranges(self.selection.blocks),
            "ffn": [_ranges(units) for units in self.selection.ffn],
            "kv_groups": [_ranges(units) for units in self.selection.kv_groups],
            "residual": None if self.selection.residual is None else _ranges(self.selection.residual),
            **({} if (experts := self.selection.experts) is None else {"experts": [_ranges(units) for units in experts]}),
            "sparse": dict(sorted(self.sparse.items())),
            "biases": sorted(self.biases),
            "steps": [
                {
                    "title": step.title,
                    "recipe": dict(step.recipe),
                    "facts": dict(step.facts),
                    "kept": {space: _ranges(units) for space, units in step.kept.items()},
                }
                for step in self.steps
            ],
        }
        write_json(folder / PLAN, document)
        updates = folder / UPDATES
        if isinstance(self.updates, Selected):
            save_one_by_one(updates, self.updates)
        else:
            save_tensors(updates, self.updates)
        save_tensors(folder / SCORES, self.scores)

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Reads what ``write`` wrote.

        Raises:
            TrimlineError: the folder holds no plan, a damaged one, or one of another format.
        """
        document = read_json(Path(folder) / PLAN, LARGEST_PLAN)
        if document.get("format") != FORMAT:
            raise TrimlineError(
                f"{folder}/plan.json has format {shown(document.get('format'))}, not {FORMAT}.", "Prune again with this version."
            )
        try:
            return cls._from_document(document, _tensors(folder, "updates"), _tensors(folder, "scores"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = shortened(f"{type(error).__name__}: {error}", 200)
            raise TrimlineError(f"{folder}/plan.json is no plan ({why}).", "Prune again.") from None

    @classmethod
    def _from_document(cls, document: Mapping[str, Any], updates: Mapping[str, torch.Tensor], scores: Mapping[str, torch.Tensor]) -> Plan:
        numbers = _Lists()
        selection = Selection(
            blocks=numbers(document["blocks"]),
            ffn=tuple(numbers(text) for text in document["ffn"]),
            kv_groups=tuple(numbers(text) for text in document["kv_groups"]),
            residual=None if document["residual"] is None else numbers(document["residual"]),
            experts=tuple(numbers(text) for text in document["experts"]) if "experts" in document else None,
        )
        steps = tuple(
            Step(str(s["title"]), dict(s["recipe"]), {space: numbers(text) for space, text in s["kept"].items()}, dict(s["facts"]))
            for s in document["steps"]
        )
        return cls(
            family=family_named(document["family"]),
            selection=_checked(selection),
            steps=steps,
            updates=updates,
            scores=scores,
            sparse={str(name): str(pattern) for name, pattern in document["sparse"].items()},
            biases=tuple(str(name) for name in document["biases"]),
        )


def _tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    path = Path(folder) / f"{name}.safetensors"
    if not path.is_file():  # a rebuilt checkpoint and a package carry plan.json alone, to be read by people
        raise TrimlineError(f"{folder} holds plan.json and no {path.name}.", "Give the folder that `trimline prune` wrote.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrimlineError(f"{path} is truncated or corrupt ({shortened(str(error), 200)}).", "Prune again.") from None


def _ranges(numbers: Iterable[int]) -> str:
    """``(0, 1, 2, 5)`` to ``"0-2 5"``: long index lists stay readable and diffable."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for run in text.split():
        first, _, last = run.partition("-")
        start, stop = int(first), int(last or first) + 1
        if not 0 <= start < stop <= MOST_UNITS:
            raise ValueError(f"{shown(run)} is no range of units")
        if numbers and start <= numbers[-1]:
            raise ValueError(f"the range {shown(run)} does not ascend")
        if len(_shared) < stop:
            _shared.extend(range(len(_shared), max(stop, 2 * len(_shared))))
        numbers.extend(_shared[start:stop])
    return tuple(numbers)


class _Lists:
    """``_numbers`` of all lists of one plan, up to ``MOST_LISTED`` numbers."""

    def __init__(self) -> None:
        self._left = MOST_LISTED

    def __call__(self, text: str) -> tuple[int, ...]:
        numbers = _numbers(text)
        self._left -= len(numbers)
        if self._left < 0:
            raise ValueError("its lists hold more units than any model has")
        return numbers
