"""The methods that recipes can name. A new one is a file beside these and a line in ``METHODS``."""

from __future__ import annotations

from difflib import get_close_matches

from pipeline.errors import TrimlineError
from pipeline.methods.block_influence import BlockInfluence
from pipeline.methods.cfsp import CFSP
from pipeline.methods.cfsp_extended import CFSPExtended
from pipeline.methods.flap import FLAP
from pipeline.methods.gblm import GBLM
from pipeline.methods.laco import LaCo
from pipeline.methods.llm_surgeon import LLMSurgeon
from pipeline.methods.magnitude import Magnitude
from pipeline.methods.method import BlockView, Method, ScoringMethod, StepMethod, WeightMethod
from pipeline.methods.residual_energy import ResidualEnergy
from pipeline.methods.sparsegpt import SparseGPT
from pipeline.methods.trimline import Trimline
from pipeline.methods.wanda import Wanda, WandaStructured

REGISTERED: tuple[Method, ...] = (
    CFSP(),
    CFSPExtended(),
    BlockInfluence(),
    Magnitude(),
    Wanda(),
    WandaStructured(),
    SparseGPT(),
    GBLM(),
    FLAP(),
    LLMSurgeon(),
    Trimline(),
    LaCo(),
    ResidualEnergy(),
)
METHODS: dict[str, Method] = {method.name: method for method in REGISTERED}

__all__ = ["METHODS", "BlockView", "Method", "ScoringMethod", "StepMethod", "WeightMethod", "method_named"]


def method_named(name: str) -> Method:
    """The method that recipes call ``name``.

    Raises:
        TrimlineError: there is none; the nearest is named.
    """
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TrimlineError(f"There is no method {name!r}.{hint}", f"The methods are {', '.join(sorted(METHODS))}.")
