"""Text that may be sent: nothing that could still become a stop string. ``deploy.pieces`` makes text of tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Lets text through up to the first stop string, wherever the pieces are cut.

    The stop string that is complete first ends the text (of two that end at the same place, the longer one); it is not
    part of it. Text that may be the beginning of one is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be sent now."""
        if self.stopped:
            return ""
        self._held += piece
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            sent, self._held = self._held[: min(ends)[1]], ""
            return sent
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        sent, self._held = self._held[:cut], self._held[cut:]
        return sent

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        sent, self._held = self._held, ""
        return sent


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
