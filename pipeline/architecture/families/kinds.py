"""Kinds of block: which mixer and which FFN a block has, by a rule over the config, and what a carried kind costs.

The ordinary kinds are those whose units can go: attention over KV groups, an FFN of channels. Every other kind is carried: its
tensors stay as they are, and go when their block goes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

ATTENTION, DENSE, NONE = "attention", "dense", "none"
ORDINARY = (ATTENTION, DENSE)


# A number, an axis of the family (``Axis``), or what config keys give: terms with " + " between, factors with " * ", such as "2 * heads * head_dim + heads".
Size = int | str


class Rule(Protocol):
    """Says which kind each block is of."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Config keys that it reads."""

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """Of the block with that number.

        Raises:
            KeyError: what the config says is no kind that is described.
            IndexError, TypeError, ValueError: the config does not say.
        """

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """Keys that say other things of the blocks that are kept; lists as long as the model is deep are cut without this."""


@dataclass(frozen=True)
class Always:
    """Every block is of one kind."""

    all: str

    @property
    def keys(self) -> tuple[str, ...]:
        """None."""
        return ()

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """See ``Rule``."""
        return self.all

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class Every:
    """The last of every so many blocks is of one kind, the others of another.

    Attributes:
        key: config key of how many.
        last, others: kinds.
        default: where config.json leaves the key out.
    """

    key: str
    last: str
    others: str
    default: int

    @property
    def keys(self) -> tuple[str, ...]:
        """See ``Rule``."""
        return (self.key,)

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """See ``Rule``."""
        return self.others if (block + 1) % int(config.get(self.key) or self.default) else self.last

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """Nothing: a list by block says it then, since the stock class would work out another."""
        return {}


@dataclass(frozen=True)
class First:
    """The first blocks are of one kind, the others of another.

    Attributes:
        key: config key of how many are.
        first, others: kinds.
    """

    key: str
    first: str
    others: str

    @property
    def keys(self) -> tuple[str, ...]:
        """See ``Rule``."""
        return (self.key,)

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """See ``Rule``."""
        return self.first if block < int(config.get(self.key) or 0) else self.others

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """How many of the first are left."""
        return {self.key: sum(block < int(config[self.key]) for block in kept)} if self.key in config else {}


@dataclass(frozen=True)
class Between:
    """The blocks from one number to another are of one kind, those before and behind of another.

    Attributes:
        first_key, last_key: config keys of these numbers, both of which count as within; a last of -1 is the model's.
        within, others: kinds.
        defaults: of the two, where config.json leaves them out.
    """

    first_key: str
    last_key: str
    within: str
    others: str
    defaults: tuple[int, int]

    @property
    def keys(self) -> tuple[str, ...]:
        """See ``Rule``."""
        return self.first_key, self.last_key

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """See ``Rule``."""
        first, last = (int(config.get(key, other)) for key, other in zip(self.keys, self.defaults, strict=True))
        return self.within if first <= block and (last == -1 or block <= last) else self.others

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """Where they stand among those that are left; behind the last one, where none of them is."""
        numbers = [number for number, block in enumerate(kept) if self.kind(config, block) == self.within]
        first, last = (numbers[0], numbers[-1]) if numbers else (len(kept), len(kept))
        return {self.first_key: first, self.last_key: last}


@dataclass(frozen=True)
class Indexed:
    """The blocks whose numbers a list holds are of one kind, the others of another.

    Attributes:
        key: of the list.
        listed, others: kinds.
    """

    key: str
    listed: str
    others: str

    @property
    def keys(self) -> tuple[str, ...]:
        """See ``Rule``."""
        return (self.key,)

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """See ``Rule``."""
        return self.listed if block in config.get(self.key) else self.others  # type: ignore[operator] # as in Listed

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """The new numbers of the blocks that are listed."""
        listed = config.get(self.key)
        return {} if listed is None else {self.key: [number for number, block in enumerate(kept) if block in listed]}


@dataclass(frozen=True)
class Listed:
    """A list in the config with an entry per block, or a text with a letter per block.

    Attributes:
        key: of the list.
        kinds: entry to kind.
        absent: says it where config.json leaves the list out; None where it always has it.
    """

    key: str
    kinds: Mapping[str, str]
    absent: Rule | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """See ``Rule``."""
        return (self.key,) if self.absent is None else (self.key, *self.absent.keys)

    def kind(self, config: Mapping[str, Any], block: int) -> str:
        """See ``Rule``."""
        found = config.get(self.key)
        if found is None and self.absent is not None:
            return self.absent.kind(config, block)
        return self.kinds[found[block]]  # type: ignore[index] # what is no list is said by the TypeError

    def after(self, config: Mapping[str, Any], kept: Collection[int]) -> Mapping[str, Any]:
        """A list is cut as all lists are; a text is cut here."""
        text = config.get(self.key)
        own = {self.key: "".join(text[block] for block in kept)} if isinstance(text, str) else {}
        return own if self.absent is None else {**own, **self.absent.after(config, kept)}


@dataclass(frozen=True)
class Adjusted:
    """An FFN that is narrower than its config key says, while a switch is on: two thirds of it, times a factor, in whole tiles.

    Attributes:
        switch, factor, tile: config keys.
        defaults: of the three, where config.json leaves them out.
    """

    switch: str
    factor: str
    tile: str
    defaults: tuple[bool, float, int]

    def width(self, config: Mapping[str, Any], stated: int) -> int:
        """Of the FFN that is stated so wide."""
        config = {**dict(zip((self.switch, self.factor, self.tile), self.defaults, strict=True)), **config}
        if not config[self.switch]:
            return stated
        width = int(2 * stated / 3)
        if config[self.factor] is None:
            return width
        tile = int(config[self.tile])
        return tile * -(-int(config[self.factor] * width) // tile)


@dataclass(frozen=True)
class KindCost:
    """What a carried kind costs beside its tensors.

    Attributes:
        state: numbers that it keeps of a sequence, whatever its length.
        recurrent: of these, those that every token changes by multiplications.
        operations: floating-point operations per token and recurrent number (a multiply-add is two).
        cached: numbers that it keeps of every token.
        attended: floating-point operations per token and token that it sees.
    """

    state: tuple[Size, ...] = ()
    recurrent: tuple[Size, ...] = ()
    operations: int = 0
    cached: tuple[Size, ...] = ()
    attended: tuple[Size, ...] = ()

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All that it speaks of."""
        return (*self.state, *self.recurrent, *self.cached, *self.attended)


@dataclass(frozen=True)
class Kinds:
    """The kinds of block of a family.

    Attributes:
        mixers: which mixer a block has: ``attention``, ``none`` or the name of a carried kind; None where all have attention.
        ffns: which FFN: ``dense``, ``none`` or the name of a carried kind; None where all have a dense one.
        costs: of the carried kinds, by name.
    """

    mixers: Rule | None = None
    ffns: Rule | None = None
    costs: Mapping[str, KindCost] = field(default_factory=dict)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that there are."""
        return tuple(rule for rule in (self.mixers, self.ffns) if rule is not None)

    def of(self, config: Mapping[str, Any], block: int) -> tuple[str, str]:
        """Mixer and FFN of a block.

        Raises:
            KeyError, IndexError, TypeError, ValueError: the config does not say.
        """
        mixer = ATTENTION if self.mixers is None else self.mixers.kind(config, block)
        return mixer, DENSE if self.ffns is None else self.ffns.kind(config, block)


def switches_in(when: str) -> dict[str, bool]:
    """The config keys in a condition such as ``q_lora_rank and not attention_bias``, to what they must be."""
    terms = [term.strip() for term in when.split(" and ") if term.strip()]
    return {term.removeprefix("not "): not term.startswith("not ") for term in terms}


def size_keys(size: Size) -> tuple[str, ...]:
    """The config keys in a size."""
    return tuple(factor for term in _terms(size) for factor in term if not factor.isdigit()) if _is_worked_out(size) else ()


def worked_out(size: str, value: Mapping[str, int]) -> int:
    """What config keys give; ``value`` has those of ``size_keys``."""
    total = 0
    for term in _terms(size):
        product = 1
        for factor in term:
            product *= int(factor) if factor.isdigit() else value[factor]
        total += product
    return total


def _is_worked_out(size: Size) -> bool:
    return type(size) is str  # an axis is more than a str


def _terms(size: Size) -> list[list[str]]:
    return [[factor.strip() for factor in term.split("*")] for term in str(size).split("+")]
