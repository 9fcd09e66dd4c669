"""What a recipe is to reach: faster, small enough, or a part of the weights gone; and what of a model each of these counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError
from pipeline.prune.allocation.targets import MEMORY, measures
from pipeline.prune.consumer import WIDTHS, Consumer, stated_dtype
from pipeline.prune.recipe import Target
from trimline.starting.clients import FORMS, Client

A_FIFTH = 0.2
CONTEXT = 4096  # tokens in the cache of a model that is to fit
GIB = 2**30
GRAPH, GGUF = "float32", "float16"  # of an export and of a package for llama.cpp, unless a recipe says otherwise


@dataclass(frozen=True)
class Purpose:
    """One of these, or ``speedup`` and ``fit`` together; without any, a fifth of the decoder goes.

    Attributes:
        speedup: how many times as fast decoding is to be, in the default runtime.
        fit: bytes for weights and the cache of one sequence.
        remove: share of the decoder's linear parameters that goes.
    """

    speedup: float | None = None
    fit: int | None = None
    remove: float | None = None

    def __post_init__(self) -> None:
        if self.remove is not None and (self.speedup or self.fit):
            raise TrimlineError("--remove says what goes, and --speedup and --fit say what the result is to be.", "Give one or the other.")
        if self.speedup is not None and not 1 < self.speedup <= 1000:
            raise TrimlineError(f"--speedup {self.speedup:g} is no speed-up.", "Give how many times as fast it is to be, such as 1.4.")
        if self.remove is not None and not 0 < self.remove < 1:
            raise TrimlineError(f"--remove {self.remove:g} is no part of a model.", "Give a fraction between 0 and 1, such as 0.3.")

    @property
    def part(self) -> float | None:
        """The share of the decoder that goes; None where the result is described instead."""
        return self.remove if self.given else A_FIFTH

    @property
    def given(self) -> bool:
        """Whether anything was asked for."""
        return (self.speedup, self.fit, self.remove) != (None, None, None)


@dataclass(frozen=True)
class Footprint:
    """What a model takes where it is served: weights, and the cache of one sequence, in numbers of one width.

    Attributes:
        dtype: of these numbers.
        form: whose numbers these are, in words.
        context: tokens in the cache.
    """

    dtype: str
    form: str
    context: int

    @classmethod
    def of(cls, clients: Iterable[Client], config: Mapping[str, Any], positions: int) -> Footprint:
        """In the widest form that one of ``clients`` reads: what fits there fits everywhere."""
        own = {"graph": GRAPH, "gguf": GGUF, "checkpoint": stated_dtype(config)}
        widest = max((client.form for client in clients), key=lambda form: WIDTHS[own[form]])
        return cls(own[widest], FORMS[widest], min(CONTEXT, positions))

    def bytes(self, geometry: Geometry) -> float:
        """Of a model of these sizes."""
        width = WIDTHS[self.dtype]
        target = Target(memory=1.0, context=self.context)
        return measures(target, geometry, Consumer(None, width, width))[MEMORY].whole(geometry)

    @property
    def words(self) -> str:
        """What is counted, for a sentence."""
        return f"weights and a cache of {self.context:,} tokens, {self.form} in {self.dtype}"


def read_per_token(geometry: Geometry) -> int:
    """Weights that one decoding step reads: the projections of every block, the experts that are chosen, and the output head."""
    return geometry.active_parameters() + geometry.vocab * geometry.hidden


def gib(amount: float) -> str:
    """Bytes for a sentence; in MiB below one GiB."""
    if amount >= GIB:
        return f"{amount / GIB:.2f} GiB"
    mib = amount / 2**20
    return f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.2f} MiB"
