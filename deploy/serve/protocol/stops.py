"""Stop strings: texts that are looked for in the answer, and special tokens, which are no part of it and stop by their id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Stops:
    """What ends an answer besides the model's own end.

    Attributes:
        texts: looked for in the text.
        tokens: ids of special tokens.
    """

    texts: tuple[str, ...] = ()
    tokens: frozenset[int] = frozenset()


class NeverFound(ValueError):
    """A stop string that cannot be found; ``place`` of it in the list."""

    def __init__(self, place: int, special: str) -> None:
        super().__init__(
            f"the stop string holds the special token {special!r} and more, and special tokens are no part of the text: "
            "it would never be found. Send the token alone."
        )
        self.place = place


def read_stops(stops: Sequence[str], tokenizer: Tokenizer) -> Stops:
    """Divides stop strings; one that is a special token is looked for in the text too, since a model can spell it.

    Raises:
        NeverFound: one holds a special token and other text.
    """
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for place, stop in enumerate(stops):
        held = [content for content in special if content and content in stop]
        if held and stop not in special:
            raise NeverFound(place, max(held, key=len))
    return Stops(tuple(stops), frozenset(special[stop] for stop in stops if stop in special))
