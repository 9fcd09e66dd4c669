"""The architectures that can be cut. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

from pipeline.architecture.families.apertus import APERTUS
from pipeline.architecture.families.arcee import ARCEE
from pipeline.architecture.families.biogpt import BIOGPT
from pipeline.architecture.families.cohere import COHERE
from pipeline.architecture.families.cohere2 import COHERE2
from pipeline.architecture.families.cwm import CWM
from pipeline.architecture.families.deepseek_v2 import DEEPSEEK_V2
from pipeline.architecture.families.deepseek_v3 import DEEPSEEK_V3
from pipeline.architecture.families.ernie4_5 import ERNIE4_5
from pipeline.architecture.families.ernie4_5_moe import ERNIE4_5_MOE
from pipeline.architecture.families.exaone4 import EXAONE4
from pipeline.architecture.families.falcon_h1 import FALCON_H1
from pipeline.architecture.families.family import Axis, Carried, Family, Linear, Mixture, Norm, Part, Point, Sublayer
from pipeline.architecture.families.gemma import GEMMA
from pipeline.architecture.families.gemma2 import GEMMA2
from pipeline.architecture.families.gemma3_text import GEMMA3_TEXT
from pipeline.architecture.families.glm import GLM
from pipeline.architecture.families.glm4 import GLM4
from pipeline.architecture.families.glm4_moe import GLM4_MOE
from pipeline.architecture.families.gpt_oss import GPT_OSS
from pipeline.architecture.families.granite import GRANITE
from pipeline.architecture.families.granite_swa import GRANITE_SWA
from pipeline.architecture.families.granitemoe import GRANITEMOE
from pipeline.architecture.families.granitemoehybrid import GRANITEMOEHYBRID
from pipeline.architecture.families.helium import HELIUM
from pipeline.architecture.families.hunyuan_v1_dense import HUNYUAN_V1_DENSE
from pipeline.architecture.families.hunyuan_v1_moe import HUNYUAN_V1_MOE
from pipeline.architecture.families.hyperclovax import HYPERCLOVAX
from pipeline.architecture.families.internlm3 import INTERNLM3
from pipeline.architecture.families.iquestcoder import IQUESTCODER
from pipeline.architecture.families.jais2 import JAIS2
from pipeline.architecture.families.kinds import ATTENTION, DENSE, NONE
from pipeline.architecture.families.lfm2 import LFM2
from pipeline.architecture.families.lfm2_moe import LFM2_MOE
from pipeline.architecture.families.llama import LLAMA
from pipeline.architecture.families.minicpm3 import MINICPM3
from pipeline.architecture.families.minimax_m2 import MINIMAX_M2
from pipeline.architecture.families.ministral import MINISTRAL
from pipeline.architecture.families.ministral3 import MINISTRAL3
from pipeline.architecture.families.mistral import MISTRAL
from pipeline.architecture.families.mixtral import MIXTRAL
from pipeline.architecture.families.nanochat import NANOCHAT
from pipeline.architecture.families.nemotron import NEMOTRON
from pipeline.architecture.families.nemotron_h import NEMOTRON_H
from pipeline.architecture.families.olmo import OLMO
from pipeline.architecture.families.olmo2 import OLMO2
from pipeline.architecture.families.olmo3 import OLMO3
from pipeline.architecture.families.olmoe import OLMOE
from pipeline.architecture.families.opt import OPT
from pipeline.architecture.families.persimmon import PERSIMMON
from pipeline.architecture.families.phi import PHI
from pipeline.architecture.families.phi3 import PHI3
from pipeline.architecture.families.phimoe import PHIMOE
from pipeline.architecture.families.qwen2 import QWEN2
from pipeline.architecture.families.qwen2_moe import QWEN2_MOE
from pipeline.architecture.families.qwen3 import QWEN3
from pipeline.architecture.families.qwen3_5_moe_text import QWEN3_5_MOE_TEXT
from pipeline.architecture.families.qwen3_5_text import QWEN3_5_TEXT
from pipeline.architecture.families.qwen3_moe import QWEN3_MOE
from pipeline.architecture.families.qwen3_next import QWEN3_NEXT
from pipeline.architecture.families.seed_oss import SEED_OSS
from pipeline.architecture.families.smollm3 import SMOLLM3
from pipeline.architecture.families.stablelm import STABLELM
from pipeline.architecture.families.starcoder2 import STARCODER2
from pipeline.architecture.families.vaultgemma import VAULTGEMMA
from pipeline.architecture.families.youtu import YOUTU
from pipeline.architecture.wrappers import WRAPPERS
from pipeline.common.errors import TrimlineError, shown

DESCRIBED = (
    APERTUS,
    ARCEE,
    BIOGPT,
    COHERE,
    COHERE2,
    CWM,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    ERNIE4_5,
    ERNIE4_5_MOE,
    EXAONE4,
    FALCON_H1,
    GEMMA,
    GEMMA2,
    GEMMA3_TEXT,
    GLM,
    GLM4,
    GLM4_MOE,
    GPT_OSS,
    GRANITE,
    GRANITEMOE,
    GRANITE_SWA,
    GRANITEMOEHYBRID,
    HELIUM,
    HUNYUAN_V1_DENSE,
    HUNYUAN_V1_MOE,
    HYPERCLOVAX,
    INTERNLM3,
    IQUESTCODER,
    JAIS2,
    LFM2,
    LFM2_MOE,
    LLAMA,
    MINIMAX_M2,
    MINICPM3,
    MINISTRAL,
    MINISTRAL3,
    MISTRAL,
    MIXTRAL,
    NANOCHAT,
    NEMOTRON,
    NEMOTRON_H,
    OLMO,
    OLMO2,
    OLMO3,
    OLMOE,
    OPT,
    PERSIMMON,
    PHI,
    PHI3,
    PHIMOE,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_5_MOE_TEXT,
    QWEN3_5_TEXT,
    QWEN3_MOE,
    QWEN3_NEXT,
    SEED_OSS,
    SMOLLM3,
    STABLELM,
    STARCODER2,
    VAULTGEMMA,
    YOUTU,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in DESCRIBED}
_GEMMA4 = (
    "its blocks multiply the whole residual stream by a number of their own, its heads are wider in some blocks than in others, "
    "and later blocks take keys and values from earlier ones or inputs of their own from a second token table"
)
BEYOND = {"gemma4": _GEMMA4, "gemma4_text": _GEMMA4}  # looked at, and what in them no description can say

__all__ = [
    "ATTENTION",
    "DENSE",
    "FAMILIES",
    "NONE",
    "Axis",
    "Carried",
    "Family",
    "Linear",
    "Mixture",
    "Norm",
    "Part",
    "Point",
    "Sublayer",
    "family_named",
]


def family_named(model_type: str) -> Family:
    """The family that transformers calls ``model_type``.

    Raises:
        TrimlineError: no description of that architecture exists here, or can.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in BEYOND:
        raise TrimlineError(
            f"The architecture {model_type} cannot be described here yet: {BEYOND[model_type]}.", "Pick a model of another type."
        )
    raise TrimlineError(
        f"The architecture {shown(model_type)} is not supported; the supported ones are {', '.join(sorted(FAMILIES))}, "
        f"and around one of these {', '.join(sorted(WRAPPERS))}.",
        "Pick a model of one of these, or describe yours in one file: docs/add-an-architecture.md shows how.",
    )
