"""How fast the exported rows are: interleaved runs of a few models each, dense and dense again in every one.

A process per model holds its weights, so all of some thirty rows at once would not fit in memory. Every speed-up is
against dense in the same rounds, so rows of different runs compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import fingerprint
from benchmarks.realised_gain import BARS
from benchmarks.recipe import BenchmarkSlice
from benchmarks.stage import measure
from pipeline.artefact import digest
from pipeline.checkpoint import read_json, write_json
from pipeline.errors import TrimlineError
from pipeline.events import Events
from pipeline.options import RunOptions

QUIET = Events()


@dataclass
class Speeds:
    """What was timed.

    Attributes:
        rows: row name, then ``prefill`` or ``decode``, to the comparison with dense (``benchmarks.results.comparison``).
        runs: everything that was measured, run by run.
        failures: row name to the sentence that says why it has no speed.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def why(self, name: str) -> dict[str, str]:
        """What a row's record says of a failure to time it."""
        return {"untimed": self.failures[name]} if name in self.failures else {}


def time_rows(
    dense: Path,
    folders: Mapping[str, Path],
    keys: Mapping[str, str],
    recipe: BenchmarkSlice,
    options: RunOptions,
    work: Path,
    together: int,
) -> Speeds:
    """Every exported row against dense; a run whose figures are in ``work`` is not measured again.

    Args:
        dense: exported folder of the dense model.
        folders: exported folders by row name.
        keys: by row name, and of ``dense``: what the row is; another key is another model.
        together: models per run, without the two dense ones.
    """
    found, names = Speeds(), list(folders)
    for start in range(0, len(names), together):
        batch = names[start : start + together]
        identity = {name: keys[name] for name in ("dense", *batch)}
        depends = {"models": identity, "recipe": recipe.model_dump(mode="json"), "machine": fingerprint(options.threads)}
        place = work / f"{digest(depends)[:12]}.json"
        try:
            if not place.exists():
                write_json(place, measure(dense, {name: folders[name] for name in batch}, recipe, options, QUIET))
        except TrimlineError as error:
            found.failures |= dict.fromkeys(batch, error.problem)
            continue
        found.runs.append(read_json(place))
        add_rows(found, found.runs[-1])
    return found


def add_rows(found: Speeds, document: Mapping[str, Any]) -> None:
    """The two comparisons that the table shows, of every row of one run."""
    for row in document["comparisons"]:
        if (row["workload"], row["metric"]) in BARS:
            found.rows.setdefault(row["model"], {})[row["metric"]] = row
