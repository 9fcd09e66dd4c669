"""Mutants meet every bound, few tokens only sort out, and the search finds the best of all choices where there are few."""

from __future__ import annotations

import random
from itertools import product

import pytest

from pipeline.prune.allocation.evolution import Levels, Mutation, Places, Sieve, Spent, evolve, mutated

EVEN = Levels(
    sizes=((8, 6, 4, 2),) * 5, costs={"units": ((8.0, 6.0, 4.0, 2.0),) * 5}, limits={"units": 22.0}
)  # a switch takes from one what it gives another
MIXED = Levels(
    sizes=((12, 8, 4), (12, 8, 4), (3, 2, 1), (3, 2, 1)),
    costs={
        "parameters": ((12.0, 8.0, 4.0),) * 2 + ((30.0, 20.0, 10.0),) * 2,
        "milliseconds": ((5.0, 4.5, 2.0),) * 2 + ((3.0, 2.5, 2.4),) * 2,
    },
    limits={"parameters": 60.0, "milliseconds": 14.0},
)


def test_a_switch_between_units_of_one_cost_keeps_the_budget_to_the_unit() -> None:
    draw, places, found = random.Random(1), (1, 2, 1, 2, 3), 0
    assert EVEN.cost("units", places) == 22
    for _ in range(200):
        mutant = mutated(places, EVEN, Mutation(), draw)
        if mutant is None:  # all five were touched, and none was left to take from
            continue
        assert EVEN.cost("units", mutant) == 22
        assert 2 <= sum(one != other for one, other in zip(places, mutant, strict=True)) <= 5
        places, found = mutant, found + 1
    assert found > 150


@pytest.mark.parametrize("rule", [Mutation(), Mutation(3, 2)])
def test_mutants_meet_every_bound_and_leave_nothing_that_fits(rule: Mutation) -> None:
    draw, start = random.Random(2), (1, 1, 1, 1)
    assert MIXED.fits(start)
    found = {mutant for _ in range(500) if (mutant := mutated(start, MIXED, rule, draw)) is not None}
    assert len(found) > 3
    for mutant in found:
        assert MIXED.fits(mutant)
        assert all(0 <= place <= MIXED.last(one) for one, place in enumerate(mutant))
        untouched = [one for one, place in enumerate(mutant) if place == start[one] and place]
        assert not any(MIXED.fits((*mutant[:one], mutant[one] - 1, *mutant[one + 1 :])) for one in untouched)


def test_where_nothing_can_be_taken_there_is_no_mutant() -> None:
    least = Levels(((4, 2),) * 3, {"units": ((4.0, 2.0),) * 3}, {"units": 6.0})
    assert mutated((1, 1, 1), least, Mutation(), random.Random(0)) is None
    found = list(evolve((1, 1, 1), least, lambda places, round_: 1.0, Mutation(), Sieve(4, (2,)), random.Random(0)))
    assert [(one.places, one.generation) for one in found] == [((1, 1, 1), 0)]


class Judge:
    """A loss with terms between sublayers; in the first round it is off by chance."""

    def __init__(self, evaluations: int) -> None:
        self.evaluations, self.asked = evaluations, list[tuple[Places, int]]()
        draw = random.Random(7)
        self.own = [[draw.random() * place**2 for place in range(4)] for _ in range(5)]
        self.pairs = [draw.random() for _ in range(4)]

    def loss(self, places: Places) -> float:
        own = sum(losses[place] for losses, place in zip(self.own, places, strict=False))
        return own + sum(weight * a * b for weight, a, b in zip(self.pairs, places, places[1:], strict=False))

    def __call__(self, places: Places, round_: int) -> float:
        if len(self.asked) >= self.evaluations:
            raise Spent
        self.asked.append((places, round_))
        return self.loss(places) + (0.0 if round_ else 0.05 * random.Random(str(places)).random())


def test_the_best_of_all_choices_is_found() -> None:
    judge = Judge(600)
    every = [places for places in product(range(4), repeat=5) if EVEN.fits(places)]
    best = min(every, key=judge.loss)
    *found, last = evolve((1, 2, 1, 2, 3), EVEN, judge, Mutation(3, 2), Sieve(8, (3,)), random.Random(0))
    assert judge.loss(last.places) == pytest.approx(judge.loss(best))
    losses = [one.loss for one in [*found, last]]
    assert losses == sorted(losses, reverse=True), "the parent takes part, so nothing gets worse"
    assert last.loss is not None
    assert last.loss < losses[0]


def test_a_search_ends_where_all_choices_are_tried() -> None:
    few = Levels(((1, 0),) * 4, {"blocks": ((1.0, 0.0),) * 4}, {"blocks": 2.0})
    judge = Judge(10_000)
    *_, last = evolve((0, 0, 1, 1), few, judge, Mutation(), Sieve(4, (2,)), random.Random(0))
    assert {places for places, _ in judge.asked} == {places for places in product(range(2), repeat=4) if sum(places) == 2}
    assert judge.loss(last.places) == min(judge.loss(places) for places, _ in judge.asked)


def test_few_are_judged_on_many_tokens_and_a_seed_says_which() -> None:
    judges = [Judge(100) for _ in range(2)]
    runs = [list(evolve((1, 2, 1, 2, 3), EVEN, judge, Mutation(), Sieve(8, (3,)), random.Random(5))) for judge in judges]
    assert runs[0] == runs[1]
    assert judges[0].asked == judges[1].asked
    first = [places for places, round_ in judges[0].asked if round_ == 0]
    assert len(set(first[:8])) == 8
    assert len([1 for _, round_ in judges[0].asked if round_]) < len(first)
