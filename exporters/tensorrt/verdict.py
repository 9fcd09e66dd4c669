"""Whether an engine uses sparse tensor cores: from what the builder logs, and from the names of the kernels it chose.

A 2:4 graph and the flag only make layers eligible: the builder times dense kernels too and takes the faster ones. So the
answer is one of three. Layers that are fused by the builder's compiler can hide their kernels, hence "unknown".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["proved", "refuted", "unknown"]

FOUND = re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics(?::\s*(.*))?")
CHOSE = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics(?::\s*(.*))?")
# TensorRT 8 named the layers without counting them.
OLD_FOUND = re.compile(r"\(Sparsity\) Layers eligible for sparse math:(.*)")
OLD_CHOSE = re.compile(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)")
SPARSE_TACTIC = re.compile(r"xmma_sparse|sptensor|sparse_(gemm|conv)|spmma", re.IGNORECASE)
OPAQUE = re.compile(r"myelin|ForeignNode", re.IGNORECASE)
TACTIC_KEYS = ("TacticName", "Tactic Name")


@dataclass(frozen=True)
class LogPair:
    """What the builder said last: how many layers could use sparse kernels, and how many do; None where it said nothing."""

    found: int | None = None
    chose: int | None = None


@dataclass(frozen=True)
class Tactics:
    """Layers of an inspected engine, by what is known of their kernels."""

    sparse: tuple[str, ...] = ()
    named: int = 0
    hidden: int = 0


@dataclass(frozen=True)
class SparseProof:
    """The answer, and what it rests on."""

    verdict: Verdict
    why: str
    found: int | None
    chose: int | None
    sparse_layers: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def read_log(lines: Iterable[str]) -> LogPair:
    """The last Found/Chose pair of a build's log. The builder writes one per pass; a Found alone has no Chose."""
    found = chose = None
    for line in lines:
        if (match := FOUND.search(line)) or (match := OLD_FOUND.search(line)):
            found, chose = _count(match), None
        elif (match := CHOSE.search(line)) or (match := OLD_CHOSE.search(line)):
            chose = _count(match)
    return LogPair(found, chose)


def read_inspector(text: str | None) -> Tactics:
    """Kernels by layer, from ``IEngineInspector``'s JSON of a build with detailed verbosity.

    Layers are strings instead of objects where the build was not detailed: nothing is known of them.
    """
    sparse, named, hidden = [], 0, 0
    for layer in _layers(text):
        if not isinstance(layer, Mapping):
            hidden += 1
            continue
        tactic = next((str(layer[key]) for key in TACTIC_KEYS if layer.get(key)), "")
        name = str(layer.get("Name", ""))
        if SPARSE_TACTIC.search(tactic):
            sparse.append(name)
        elif tactic and not OPAQUE.search(tactic):
            named += 1
        elif OPAQUE.search(tactic + name + str(layer.get("LayerType", ""))):
            hidden += 1
    return Tactics(tuple(sparse), named + len(sparse), hidden)


def judge(asked: bool, log: LogPair, tactics: Tactics) -> SparseProof:
    """``proved`` where a sparse kernel is named or counted, ``refuted`` where none can be there, else ``unknown``.

    Args:
        asked: the build was allowed to use sparse kernels.
        log: of the build.
        tactics: of the finished engine; empty where it was not opened.
    """

    def proof(verdict: Verdict, why: str) -> SparseProof:
        return SparseProof(verdict, why, log.found, log.chose, tactics.sparse)

    if not asked:
        return proof("refuted", "SPARSE_WEIGHTS was off")
    if tactics.sparse:
        return proof("proved", f"the engine names sparse kernels in {len(tactics.sparse)} layers")
    if log.chose:
        return proof("proved", f"the builder chose sparse kernels for {log.chose} of {log.found} eligible layers")
    if log.found == 0:
        return proof("refuted", "the builder found no layer that could use sparse kernels")
    if log.chose == 0:
        return proof("refuted", f"the builder found {log.found} eligible layers and chose dense kernels for all of them")
    if tactics.named and not tactics.hidden:
        return proof("refuted", f"none of the {tactics.named} kernels that the engine names is sparse")
    if tactics.named or tactics.hidden:
        return proof("unknown", f"{tactics.hidden} layers hide their kernels, and the log does not say")
    return proof("unknown", "the log does not say, and the engine was not opened")


def _count(match: re.Match[str]) -> int:
    first = match.group(1) or ""
    return int(first) if first.isdigit() else len([name for name in first.split(",") if name.strip()])


def _layers(text: str | None) -> Iterator[Any]:
    if not text:
        return
    document = json.loads(text)
    yield from (document.get("Layers", []) if isinstance(document, Mapping) else document)
