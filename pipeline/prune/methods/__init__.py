"""The methods that recipes can name. A new one is a file beside these and a line in ``METHODS``."""

from __future__ import annotations

from difflib import get_close_matches

from pipeline.common.errors import TrimlineError
from pipeline.prune.methods.block_influence import BlockInfluence
from pipeline.prune.methods.bypass import Bypass
from pipeline.prune.methods.cfsp import CFSP
from pipeline.prune.methods.cfsp_extended import CFSPExtended
from pipeline.prune.methods.ean import EAN
from pipeline.prune.methods.expert_loss import ExpertLoss
from pipeline.prune.methods.flap import FLAP
from pipeline.prune.methods.frequency import Frequency
from pipeline.prune.methods.gblm import GBLM
from pipeline.prune.methods.laco import LaCo
from pipeline.prune.methods.llm_surgeon import LLMSurgeon
from pipeline.prune.methods.magnitude import Magnitude
from pipeline.prune.methods.man import MAN
from pipeline.prune.methods.reap import REAP
from pipeline.prune.methods.residual_energy import ResidualEnergy
from pipeline.prune.methods.sparsegpt import SparseGPT
from pipeline.prune.methods.taylor import Taylor
from pipeline.prune.methods.trimline import Trimline
from pipeline.prune.methods.wanda import Wanda, WandaStructured
from pipeline.prune.step import Method

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
    Taylor(),
    REAP(),
    Frequency(),
    EAN(),
    MAN(),
    ExpertLoss(),
    Bypass(),
)
METHODS: dict[str, Method] = {method.name: method for method in REGISTERED}


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
