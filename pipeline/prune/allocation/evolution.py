"""Sizes by evolution: mutants of the best sizes so far, under the same budget, judged on few tokens and the best of them on more.

The search of EvoPress (arXiv 2410.14649): one parent; a *level switch* gives some sublayers more and takes as much from others;
of all offspring the best few on few tokens are judged on more, and in the last round the parent takes part. There every switch is
of one level, between sublayers of one size. Ours are switches of several levels at once, and those between sublayers whose units
cost differently: what the larger one needs is taken step by step, and what is left over is given away. So bounds of any kind
hold, those of a latency table among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

SLACK = 1e-9  # of a bound, for the order of sums
IDLE = 10  # generations without a choice that was not tried before: then there is hardly one left
TRIES = 100  # to draw a mutant that is none of those there are
Places = tuple[int, ...]  # of every sublayer, which of its sizes; 0 is what it has


class Spent(Exception):
    """The budget of a search is used up."""


@dataclass(frozen=True)
class Levels:
    """The sizes that may be chosen, sublayer by sublayer, and what they cost.

    Attributes:
        sizes: of every sublayer, descending; the first is what it has.
        costs: per measure, of every sublayer at each of its sizes, descending.
        limits: per measure, the most that all may cost together.
    """

    sizes: tuple[tuple[int, ...], ...]
    costs: Mapping[str, tuple[tuple[float, ...], ...]]
    limits: Mapping[str, float]

    def cost(self, name: str, places: Sequence[int]) -> float:
        """Of a choice, in one measure."""
        return sum(costs[place] for costs, place in zip(self.costs[name], places, strict=True))

    def fits(self, places: Sequence[int]) -> bool:
        """Whether a choice meets every bound."""
        return all(self.cost(name, places) <= limit + SLACK * abs(limit) for name, limit in self.limits.items())

    def last(self, sublayer: int) -> int:
        """Of its smallest size."""
        return len(self.sizes[sublayer]) - 1

    def chosen(self, places: Sequence[int]) -> list[int]:
        """The sizes themselves."""
        return [sizes[place] for sizes, place in zip(self.sizes, places, strict=True)]


@dataclass(frozen=True)
class Mutation:
    """How far a mutant may lie from its parent.

    Attributes:
        switches: at most so many sublayers get more; the number is the smaller of two draws, as published.
        levels: by at most so many sizes each; published is one.
    """

    switches: int = 3
    levels: int = 1


def mutated(parent: Places, levels: Levels, rule: Mutation, draw: random.Random) -> Places | None:
    """Another choice that meets every bound, or None where the draw finds nothing that can be taken."""
    places, touched = list(parent), set[int]()
    for _ in range(min(draw.randint(1, rule.switches), draw.randint(1, rule.switches))):
        small = [sublayer for sublayer, place in enumerate(places) if place > 0 and sublayer not in touched]
        if not small:
            break
        grown = draw.choice(small)
        places[grown] = max(0, places[grown] - draw.randint(1, rule.levels))
        touched.add(grown)
        if not _shrink(places, levels, touched, draw):
            return None
    _give_away(places, levels, touched, draw)
    return tuple(places)


def _shrink(places: list[int], levels: Levels, touched: set[int], draw: random.Random) -> bool:
    """Takes size by size from one sublayer after the other until the bounds hold; whether they do."""
    while not levels.fits(places):
        large = [sublayer for sublayer, place in enumerate(places) if place < levels.last(sublayer) and sublayer not in touched]
        if not large:
            return False
        shrunk = draw.choice(large)
        touched.add(shrunk)
        while places[shrunk] < levels.last(shrunk) and not levels.fits(places):
            places[shrunk] += 1
    return True


def _give_away(places: list[int], levels: Levels, touched: set[int], draw: random.Random) -> None:
    """Lets sublayers that nothing was taken from or given to grow, as long as the bounds hold."""

    def larger(sublayer: int) -> list[int]:
        return [*places[:sublayer], places[sublayer] - 1, *places[sublayer + 1 :]]

    while room := [one for one, place in enumerate(places) if place > 0 and one not in touched and levels.fits(larger(one))]:
        places[draw.choice(room)] -= 1


@dataclass(frozen=True)
class Sieve:
    """How offspring are chosen.

    Attributes:
        offspring: of every generation.
        survivors: how many are left after each round but the last, which leaves one.
    """

    offspring: int
    survivors: tuple[int, ...]


@dataclass(frozen=True)
class Evolved:
    """Where a search has come to.

    Attributes:
        places: the best so far.
        loss: of it, in the last round; None before it was judged.
        generation: how many are over.
    """

    places: Places
    loss: float | None
    generation: int


def evolve(
    start: Places,
    levels: Levels,
    judge: Callable[[Places, int], float],
    rule: Mutation,
    sieve: Sieve,
    draw: random.Random,
) -> Iterator[Evolved]:
    """The best after every generation, until ``judge`` raises ``Spent`` or nothing new is drawn.

    Args:
        start: meets every bound.
        levels: what may be chosen.
        judge: the loss of a choice in a round, from 0; smaller is better.
        rule: how mutants are drawn.
        sieve: how many, and how many of them are left.
        draw: of all that is left to chance.
    """
    last, tried, idle = len(sieve.survivors), {start}, 0
    try:
        best = Evolved(start, judge(start, last), 0)
        yield best
        while chosen := _offspring(best.places, levels, rule, sieve.offspring, draw):
            idle = idle + 1 if tried.issuperset(chosen) else 0
            if idle == IDLE:
                return
            tried.update(chosen)
            for round_, left in enumerate(sieve.survivors):
                chosen = _best(chosen, judge, round_)[:left]
            places = _best([best.places, *chosen], judge, last)[0]
            best = Evolved(places, judge(places, last), best.generation + 1)
            yield best
    except Spent:
        return


def _best(places: Sequence[Places], judge: Callable[[Places, int], float], round_: int) -> list[Places]:
    """By their loss; among equals the first."""
    losses = [judge(one, round_) for one in places]
    return [places[number] for number in sorted(range(len(places)), key=lambda number: losses[number])]


def _offspring(parent: Places, levels: Levels, rule: Mutation, count: int, draw: random.Random) -> list[Places]:
    """As many different mutants as there are to be, or as can be found."""
    found: dict[Places, None] = {}
    for _ in range(TRIES * count):
        mutant = mutated(parent, levels, rule, draw)
        if mutant is not None and mutant != parent:
            found[mutant] = None
        if len(found) == count:
            break
    return list(found)
