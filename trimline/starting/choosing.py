"""Which way serves a purpose: the first that everybody named loads, and that reaches what is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import check_timed, no_graph
from pipeline.common.errors import TrimlineError
from pipeline.rebuild.verdicts import ConsumerVerdict
from pipeline.sources.config import NamedModel
from trimline.starting.clients import DEFAULT_CLIENT, DEFAULT_WITHOUT_GRAPH, Client, clients
from trimline.starting.purpose import CONTEXT, Footprint, Purpose, gib, read_per_token
from trimline.starting.ways import EXPERTS, MILDEST, Way, demand_ffn, ways_for


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a model and a purpose.

    Attributes:
        model: it.
        purpose: what for.
        clients: who is to load the result, by name.
        way: what goes, and in which shape the rest is written.
        verdicts: what every consumer does with the result.
        footprint: what is counted where the result is to fit.
    """

    model: NamedModel
    purpose: Purpose
    clients: Mapping[str, Client]
    way: Way
    verdicts: Mapping[str, ConsumerVerdict]
    footprint: Footprint

    @property
    def method(self) -> str:
        return self.way.method(self.model.geometry)

    @property
    def no_graph(self) -> str:
        """Why the recipe makes no graph; empty where it makes one."""
        return no_graph(self.model.geometry.family)

    @property
    def share(self) -> float | None:
        """What is left of the dense model's bytes, rounded down; None where nothing is said of them."""
        if self.purpose.fit is None:
            return None
        return math.floor(1e6 * self.purpose.fit / self.footprint.bytes(self.model.geometry)) / 1e6

    @property
    def goes(self) -> float:
        """About which share of the decoder goes; for a speed, as if time were the weights that a step reads."""
        dense = self.model.geometry
        if self.purpose.part is not None:
            return self.purpose.part
        of_time = (1 - 1 / self.purpose.speedup) * read_per_token(dense) if self.purpose.speedup else 0.0
        of_room = (1 - (self.share or 1.0)) * dense.total_parameters()
        return min(1.0, max(of_time, of_room) / dense.decoder_parameters())


def positions_of(model: NamedModel) -> int:
    """Tokens that the model was made for; where its config does not say, more than anything here asks for."""
    stated = model.config.get("max_position_embeddings")
    return stated if isinstance(stated, int) and stated > 0 else CONTEXT


def choose(model: NamedModel, purpose: Purpose, names: Iterable[str]) -> Chosen:
    """The first way that everybody named loads and that reaches the purpose.

    Args:
        model: the dense model.
        purpose: what for.
        names: who is to load the result; without any, the default runtime, or transformers where no graph is made of the model.

    Raises:
        TrimlineError: a name means nothing, the model fits already, somebody named loads no shape that could come out, or
            nothing goes far enough.
    """
    demand_ffn(model.geometry)
    wanted = clients(names, DEFAULT_WITHOUT_GRAPH if no_graph(model.geometry.family) else DEFAULT_CLIENT)
    if purpose.speedup is not None:
        _demand_timed(model)
    ways = ways_for(model.geometry)
    if ways == (EXPERTS,) and purpose.speedup is not None:
        raise TrimlineError(
            f"Removing experts makes {model.name} no faster: {model.geometry.routing.chosen} are chosen for every token, however many there are.",
            "Ask for --fit or --remove.",
        )
    footprint = Footprint.of(wanted.values(), model.config, positions_of(model))
    _demand_too_large(model, purpose, footprint)
    short: dict[int, TrimlineError] = {}
    refused: list[TrimlineError] = []
    for way in ways:
        try:
            verdicts = way.verdicts(model.geometry, model.config)
            _demand_loaded(verdicts, wanted.values())
        except TrimlineError as error:
            refused.append(error)
            continue
        shortfall = _shortfall(way, model.geometry, purpose, footprint)
        if shortfall is None:
            return Chosen(model, purpose, wanted, way, verdicts, footprint)
        short[len(way.spaces)] = shortfall
    # Of ways that fall short, one of those that go furthest; of shapes that are not loaded, the mildest: blocks alike, all heads there.
    raise short[max(short)] if short else refused[ways.index(MILDEST) if MILDEST in ways else 0]


def _demand_timed(model: NamedModel) -> None:
    try:
        check_timed(model.geometry.family)
    except TrimlineError as error:
        raise TrimlineError(error.problem, "Ask for --fit or --remove.") from None


def _demand_too_large(model: NamedModel, purpose: Purpose, footprint: Footprint) -> None:
    takes = footprint.bytes(model.geometry)
    if purpose.fit is not None and takes <= purpose.fit:
        raise TrimlineError(
            f"{model.name} fits into {gib(purpose.fit)} as it is: it takes {gib(takes)} ({footprint.words}).",
            "There is nothing to do; give less to --fit, or use --speedup or --remove.",
        )


def _demand_loaded(verdicts: Mapping[str, ConsumerVerdict], wanted: Iterable[Client]) -> None:
    for client in wanted:
        verdict = verdicts[client.consumer]
        if verdict.stands_in_the_way:
            does = "does not load this model" if verdict.loads is False else "is not known to load this model"
            raise TrimlineError(
                f"{client.consumer} {does} once it is pruned: {verdict.why}.",
                f"{verdict.change[:1].upper()}{verdict.change[1:]}, or leave it out of --for.",
            )


def _shortfall(way: Way, dense: Geometry, purpose: Purpose, footprint: Footprint) -> TrimlineError | None:
    """Why a way does not go far enough, and how far it goes; None where it does."""
    smallest = way.smallest(dense)
    if purpose.part is not None:
        most = 1 - smallest.decoder_parameters() / dense.decoder_parameters()
        if purpose.part > most:
            return _beyond(
                f"--remove {purpose.part:g}", way, f"at most {most:.1%} of the decoder's linear parameters go", f"{_down(most)} at most"
            )
    if purpose.fit is not None:
        least = footprint.bytes(smallest)
        if purpose.fit < least:
            reached = f"at least {gib(least)} stay, {footprint.words}"
            return _beyond(f"--fit {gib(purpose.fit)}", way, reached, f"{math.ceil(least / 2**20)}MiB at least")
    if purpose.speedup is not None:
        ratio = read_per_token(dense) / read_per_token(smallest)
        if purpose.speedup > ratio:
            reached = f"every decoding step still reads {1 / ratio:.1%} of the weights"
            return _beyond(f"--speedup {purpose.speedup:g}", way, reached, f"less than {_down(ratio)}")
    return None


def _beyond(asked: str, way: Way, reached: str, instead: str) -> TrimlineError:
    return TrimlineError(f"{asked} is more than {way.words} can give: {reached}.", f"Ask for {instead}.")


def _down(value: float) -> str:
    return f"{math.floor(value * 100) / 100:g}"
