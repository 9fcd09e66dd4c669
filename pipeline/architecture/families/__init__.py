"""The architectures that can be cut. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

from pipeline.architecture.families.family import Axis, Family, Linear, Norm, Point, Sublayer
from pipeline.architecture.families.llama import LLAMA
from pipeline.architecture.families.mistral import MISTRAL
from pipeline.architecture.families.opt import OPT
from pipeline.architecture.families.phi3 import PHI3
from pipeline.architecture.families.qwen2 import QWEN2
from pipeline.architecture.families.qwen3 import QWEN3
from pipeline.common.errors import TrimlineError, shown

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
