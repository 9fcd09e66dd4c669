"""The architectures that can be cut. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

from pipeline.errors import TrimlineError, shown
from pipeline.families.family import Axis, Family, Linear, Norm, Point, Sublayer
from pipeline.families.llama import LLAMA
from pipeline.families.mistral import MISTRAL
from pipeline.families.opt import OPT
from pipeline.families.phi3 import PHI3
from pipeline.families.qwen2 import QWEN2
from pipeline.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, OPT, PHI3)}

__all__ = ["FAMILIES", "Axis", "Family", "Linear", "Norm", "Point", "Sublayer", "family_named"]


def family_named(model_type: str) -> Family:
    """The family that transformers calls ``model_type``.

    Raises:
        TrimlineError: no description of that architecture exists here.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    raise TrimlineError(
        f"The architecture {shown(model_type)} is not supported; the supported ones are {', '.join(sorted(FAMILIES))}.",
        "Pick a model of one of these, or describe yours in one file: docs/add-an-architecture.md shows how.",
    )
