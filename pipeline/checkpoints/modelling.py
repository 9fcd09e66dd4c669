"""The modelling files that ship inside a checkpoint whose blocks differ, rendered from the family's description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.architecture.families import Axis, Family, Sublayer, family_named
from pipeline.architecture.profile import Profile

DECILM_MODEL_TYPE = "nemotron-nas"


@dataclass(frozen=True)
class Names:
    """What the shipped classes and modules are called; vLLM and llama.cpp know ``decilm`` by these names."""

    model_type: str
    config_module: str
    model_module: str
    config_class: str
    model_class: str

    @property
    def auto_map(self) -> dict[str, str]:
        """What transformers' Auto classes look up in config.json."""
        return {
            "AutoConfig": f"{self.config_module}.{self.config_class}",
            "AutoModelForCausalLM": f"{self.model_module}.{self.model_class}",
        }


def names_for(family: Family, profile: Profile) -> Names | None:
    """Names of the shipped classes; None for ``uniform``, which ships none."""
    if profile is Profile.DECILM:
        return Names(DECILM_MODEL_TYPE, "configuration_decilm", "modeling_decilm", "DeciLMConfig", "DeciLMForCausalLM")
    if profile is Profile.FREE:
        prefix = f"Trimline{family.class_prefix}"
        model_type = f"trimline_{family.model_type}"
        return Names(model_type, "configuration_trimline", "modeling_trimline", f"{prefix}Config", f"{prefix}ForCausalLM")
    return None


def profile_of(config: Mapping[str, Any]) -> Profile:
    """The shape profile that a config.json is written in; NVIDIA's own DeciLM models are of that name whatever their model_type."""
    if "block_configs" not in config:
        return Profile.UNIFORM
    named = config.get("architectures")
    deci = isinstance(named, list) and any("DeciLM" in str(name) for name in named)
    return Profile.DECILM if deci or config.get("model_type") == DECILM_MODEL_TYPE else Profile.FREE


def shipped_files(family: Family, profile: Profile) -> Mapping[str, str]:
    """File name to text of what ships beside the weights; nothing for ``uniform``."""
    names = names_for(family, profile)
    if names is None:
        return {}
    context = {
        "family": family,
        "names": names,
        "shared_norms": [norm.name for norm in family.norms if norm.sublayer is None],
        "sublayers": [_sublayer(family, sublayer) for sublayer in family.cuttable],
        "gated_query": any(Axis.GATED_QUERY in linear.rows for linear in family.linears),
        "grouped": any(Axis.GROUPED in linear.rows for linear in family.linears),
        "by_head": [carried.name for carried in family.carried if Axis.HEADS in carried.shape],
        # A stock attention with one projection for q, k and v tells them apart by the head counts of its config.
        "fused_attention": any(len(ln.rows) > 1 for ln in family.writers(Sublayer.ATTENTION)),
    }
    return {
        f"{names.config_module}.py": _template("configuration.py.jinja").render(context),
        f"{names.model_module}.py": _template("modeling.py.jinja").render(context),
    }


def expected_files(config: Mapping[str, Any]) -> Mapping[str, str]:
    """The modelling files that belong beside this config.json if it was written here.

    Raises:
        TrimlineError: ``base_model_type`` names an unsupported architecture.
    """
    profile = profile_of(config)
    if profile is Profile.UNIFORM:
        return {}
    return shipped_files(family_named(str(config.get("base_model_type"))), profile)


def _sublayer(family: Family, sublayer: Sublayer) -> dict[str, Any]:
    module = family.attention if sublayer is Sublayer.ATTENTION else family.ffn
    inside = f"{module}." if module else None
    return {
        "name": sublayer.value,
        "module": module,
        "linears": [linear.name for linear in family.linears if linear.sublayer is sublayer],
        "reader": family.reader(sublayer).name,
        # A norm inside the sublayer's module (q_norm) goes with the module.
        "norms": [
            norm.name
            for norm in family.norms
            if norm.sublayer is sublayer and norm.stands_in(sublayer.ordinary) and not (inside and norm.name.startswith(inside))
        ],
    }


def _template(name: str) -> Any:
    loader = PackageLoader("pipeline.checkpoints", "shipped")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["repr"] = repr
    return environment.get_template(name)
