"""Files that artefacts are made from, which their owner may change meanwhile: looked at again before an artefact is renamed.

A file is taken for the same while its device, number, size and time of change are. Where these differ its sum decides, if it was summed
before: a file that was only touched is the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.artefacts.sums import file_digest
from pipeline.common.errors import TrimlineError

SETTLED = 1.0  # seconds since a file was changed; before, it may be changed again within one tick of the file system's clock
NOBODYS = "What was made of it is of two versions, and was not kept."


class FileIdentity(NamedTuple):
    """What is known of a file without reading it."""

    device: int
    number: int
    size: int
    changed: int


_summed: dict[Path, tuple[FileIdentity, str]] = {}


def identity_of(path: Path) -> FileIdentity | None:
    """Of a file, or of what a link leads to; None where there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def known_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, which are read again only where the file is no longer the one that it was."""
    path, before = path.absolute(), identity_of(path)
    known = _summed.get(path)
    if known and known[0] == before:
        return known[1]
    found = file_digest(path)
    if before and before == identity_of(path) and abs(time.time() - before.changed / 1e9) > SETTLED:
        _summed[path] = before, found
    return found


class Watched:
    """Files, and the files directly in folders, as they were when this was made; what is not there counts as absent.

    Args:
        places: what somebody named; hidden files in folders do not count.
    """

    def __init__(self, *places: Path) -> None:
        self._places = places
        self._seen = dict(self._look())

    def demand_unchanged(self) -> None:
        """Looks again.

        Raises:
            TrimlineError: a file changed, is gone or is new; names it.
        """
        if (found := self.changed()) is not None:
            raise changed(found)

    def changed(self) -> Path | None:
        """The first file that is not as it was."""
        now = dict(self._look())
        return next((path for path in sorted({*self._seen, *now}) if not self._same(path, now.get(path))), None)

    def _same(self, path: Path, now: FileIdentity | None) -> bool:
        before, (summed, digest) = self._seen.get(path), _summed.get(path, (None, ""))
        if before == now:
            return True
        return before is not None and now is not None and before == summed and known_digest(path) == digest

    def _look(self) -> Iterator[tuple[Path, FileIdentity]]:
        for place in self._places:
            listed = place.iterdir() if place.is_dir() else [place]
            for path in listed:
                found = identity_of(path)
                if found and path.is_file() and not path.name.startswith("."):
                    yield path.absolute(), found


def changed(what: object) -> TrimlineError:
    """The sentence about an input that did not stay as it was."""
    return TrimlineError(f"{what} changed while it was being read. {NOBODYS}", "Leave it as it is, and run the same command again.")


Unchanged = Callable[[], None]


def unwatched() -> None:
    """Of what is made of nothing that somebody else may change."""
