"""What a consumer does with a result, and what rules about consumers look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.stock import accepts_heads

Evidence = Literal["seen to run", "from its documentation", "not run", "not looked at"]
RAN: Evidence = "seen to run"
READ: Evidence = "from its documentation"
NOT_RUN: Evidence = "not run"  # from its documentation too, and nothing of this consumer was ever started here
NOT_LOOKED_AT: Evidence = "not looked at"


@dataclass(frozen=True)
class ConsumerVerdict:
    """What one consumer does with a result.

    Attributes:
        consumer: its name.
        loads: whether it loads the result, in the form given in ``why``; None where nobody has looked.
        why: how it loads it, or what it cannot express.
        change: what would make it load; empty where it does.
        checked: whether this was seen by running it.
        gated: an export of ours is run in it before it is written, so that trying costs nothing.
    """

    consumer: str
    loads: bool | None
    why: str
    change: str
    checked: Evidence
    gated: bool = False

    @property
    def stands_in_the_way(self) -> bool:
        """Whether work towards this consumer should not begin: it does not load the result, or nobody knows and no gate would tell."""
        return self.loads is False or (self.loads is None and not self.gated)


@dataclass(frozen=True)
class ConsumerInput:
    """What the rules look at."""

    result: Geometry
    profile: Profile
    config: Mapping[str, Any]

    @property
    def uniform(self) -> bool:
        return self.profile is Profile.UNIFORM

    @property
    def decilm(self) -> bool:
        return self.profile is Profile.DECILM

    @property
    def heads_fill_hidden(self) -> bool:
        """Whether hidden size = heads × head_dim, as some consumers assume."""
        result = self.result
        return result.most(Sublayer.ATTENTION) * result.queries_per_group * result.head_dim == result.hidden

    def seen_as(self, family: str) -> Evidence:
        """Seen to run for ``family`` without biases; for others and with biases, its source says so."""
        biased = any(self.result.has_bias(linear) for linear in self.result.family.linears)
        return RAN if self.result.family.model_type == family and not biased else READ

    @property
    def becomes_mistral(self) -> bool:
        """Whether stock Llama refuses the number of heads, so that ``uniform`` is written as Mistral."""
        heads = self.result.most(Sublayer.ATTENTION) * self.result.queries_per_group
        config = {**self.config, "hidden_size": self.result.hidden}
        return self.result.family.model_type == "llama" and not accepts_heads(self.result.family, config, heads)

    @property
    def qwen3_output_bias(self) -> bool:
        """Whether a Qwen3 has a bias where published ones have none, and some consumers know none."""
        family = self.result.family
        return family.model_type == "qwen3" and self.result.has_bias(family.reader(Sublayer.ATTENTION))
