"""What in a folder could mean another model than the one that is read: a second source of weights, an adapter.

transformers reads one and says nothing of the other. Reading is safe then, and whoever measures says what was read; making
something of it is not, since nobody knows which was meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.checkpoints.stored import Shards, StoredTensor
from pipeline.checkpoints.weight_files import INDEX, MERGE, SINGLE, WeightFiles
from pipeline.common.errors import TrimlineError

Identity = tuple[str, int, int, int]  # path, bytes, time of the last change in ns, inode


@dataclass(frozen=True)
class Doubt:
    """Why a folder may mean another model.

    Attributes:
        problem: one sentence: what is there.
        read: one sentence: what of it is read.
        remedy: one sentence: what leaves no doubt.
    """

    problem: str
    read: str
    remedy: str


def doubts_about(folder: Path, files: WeightFiles) -> tuple[Doubt, ...]:
    """Every reason for doubt; the weights are compared only where there are two sources of them."""
    found = []
    if files.other and (name := _first_difference(_identities(files.read), _identities(files.other), files.whole)) is not None:
        found.append(
            Doubt(
                f"{folder} has two sources of weights that differ (first in {name}): {SINGLE}, and the shards of {INDEX}.",
                f"{SINGLE} is read, as transformers does.",
                f"Delete {INDEX} and its shards if they are left over, or {SINGLE} if it is.",
            )
        )
    if files.adapter:
        found.append(
            Doubt(
                f"{folder} holds an adapter beside its weights ({', '.join(files.adapter)}), which transformers puts on by itself.",
                "The weights are read without it.",
                f"Delete its files if it is merged already; else move them to a folder ADAPTER and merge it: {MERGE}.",
            )
        )
    return tuple(found)


def same_tensor(path: Path, other: Path, one: StoredTensor, two: StoredTensor) -> bool:
    """Whether tensors of two files hold the same numbers; remembered for as long as the files stay as they are."""
    return _same(*_identities((path, other)), one, two)


def _identities(paths: Sequence[Path]) -> tuple[Identity, ...]:
    stats = [(str(path), path.stat()) for path in paths]
    return tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)


@lru_cache(maxsize=64)
def _same(path: Identity, other: Identity, one: StoredTensor, two: StoredTensor) -> bool:
    return Shards([Path(path[0])]).same(one, two, Shards([Path(other[0])]))


@lru_cache(maxsize=64)
def _first_difference(read: tuple[Identity, ...], other: tuple[Identity, ...], whole: bool) -> str | None:
    """The first tensor, by name, that one source has otherwise; ``whole``: the other one lacks no file."""
    try:
        ours, theirs = (Shards(Path(path[0]) for path in paths) for paths in (read, other))
    except TrimlineError:  # what nobody can open is no source
        return None
    mine, found = ({stored.name: stored for stored in shards} for shards in (ours, theirs))
    names = sorted(set(mine) ^ set(found)) if whole else sorted(set(found) - set(mine))
    return names[0] if names else next((name for name in sorted(found) if not ours.same(mine[name], found[name], theirs)), None)
