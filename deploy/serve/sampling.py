"""What a request asks of the sampler (``compute.choosing``), in the words of onnxruntime-genai's search options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEEDS = 2**31  # as many as the docs promise


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; None: as the model's folder says, else as OpenAI's protocol does.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: share of the probability that is sampled from; 0 takes the most likely token.
        top_k: most tokens that are sampled from; 0 or -1: no limit.
        seed: same seed, same tokens; None: another text each time.
        ignore_end: goes on to the limit, as benchmarks want.
        penalty: on tokens that were there before; 1: none.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    ignore_end: bool = False
    penalty: float | None = None

    def options(self, folder: Mapping[str, Any], length: int) -> dict[str, Any]:
        """Search options of one answer.

        Args:
            folder: ``search`` of genai_config.json.
            length: tokens of prompt and answer together.
        """
        temperature = _first(self.temperature, folder.get("temperature"), 1.0)
        top_p = _first(self.top_p, folder.get("top_p"), 1.0)
        top_k = _first(self.top_k, folder.get("top_k"), 0)
        common: dict[str, Any] = {"max_length": length, "min_length": length if self.ignore_end else 0}
        common |= {} if self.penalty is None else {"repetition_penalty": float(self.penalty)}
        if temperature == 0 or top_p == 0 or top_k == 1:
            return common | {"do_sample": False}
        seed = {} if self.seed is None else {"random_seed": self.seed % SEEDS}
        return common | {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": max(0, int(top_k))} | seed


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
