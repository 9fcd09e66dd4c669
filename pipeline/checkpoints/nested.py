"""The config of a language model that a larger model's config.json nests, and back.

config.json of such a folder may leave out what the classes of transformers fill in (LLaVA 1.5 states no hidden size), and its top decides
whether the head is the token table. So both are read by these classes, once, here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.architecture.families import Family, family_named
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.reading import MOST_BLOCKS
from pipeline.architecture.wrappers import WRAPPERS, Wrapper
from pipeline.checkpoints.stock import refused_by_class
from pipeline.common.errors import TrimlineError, shown

TEXT, VISION, TIE = "text_config", "vision_config", "tie_word_embeddings"
ROTARY, DTYPES = "rope_parameters", ("dtype", "torch_dtype")


@dataclass(frozen=True)
class Nested:
    """A config.json that nests a language model's.

    Attributes:
        wrapper: the type of the whole.
        whole: config.json.
        text: of the language model, as a config.json of its own, with what the classes fill in.
        deepstack: how many of the first blocks image features are added after.
    """

    wrapper: Wrapper
    whole: Mapping[str, Any]
    text: Mapping[str, Any]
    deepstack: int = 0

    def around(self, geometry: Geometry) -> Geometry:
        """Sizes of the language model, with what its place in the whole means for it."""
        return replace(geometry, within=self.wrapper, pinned=self.deepstack)

    def with_text(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """The whole's config.json around another config of the language model.

        Sizes are stated, and what is not what the classes filled in; all else is said, or left out, as it was.
        """
        before: Mapping[str, Any] = self.whole.get(TEXT) or {}
        sizes = sizes_of(family_named(str(self.text["model_type"])))
        stated = {key: value for key, value in text.items() if key in sizes or key not in self.text or value != self.text[key]}
        gone = self.text.keys() - text.keys()
        inside = {key: value for key, value in before.items() if key not in gone} | stated
        tied = {TIE: inside.pop(TIE)} if TIE in stated else {}
        return {**self.whole, TEXT: inside, **tied}


def sizes_of(family: Family) -> frozenset[str]:
    """Keys of a config that say how large a language model is."""
    keys = (family.layers_key, family.ffn_key, family.heads_key, family.kv_heads_key, "head_dim")
    return frozenset(key for key in keys if key is not None)


def nested(config: Mapping[str, Any]) -> Nested | None:
    """What a config.json nests; None for a language model's own.

    Raises:
        TrimlineError: transformers' classes refuse it, or the language model inside is of no supported type.
    """
    wrapper = WRAPPERS.get(str(config.get("model_type")))
    if wrapper is None:
        return None
    opened = _opened(config)
    text = _said(opened.get_text_config())
    kind = str(text.get("model_type"))
    family = family_named(wrapper.computed_as.get(kind, kind))
    dtype = next((config[key] for key in DTYPES if config.get(key) is not None), text.get("dtype"))
    text |= {"model_type": family.model_type, "architectures": [f"{family.class_prefix}ForCausalLM"], "dtype": dtype}
    if isinstance(rotary := text.get(ROTARY), dict) and wrapper.axes:
        text[ROTARY] = {key: value for key, value in rotary.items() if key not in wrapper.axes}
    text[TIE] = bool(getattr(opened, TIE, False))
    levels = getattr(getattr(opened, VISION, None), wrapper.deepstack, None) if wrapper.deepstack else None
    return Nested(wrapper, config, text, len(levels or ()))


def _said(config: PretrainedConfig) -> dict[str, Any]:
    """What a config says of its model, without what every config says of none."""
    bare, library = PretrainedConfig().to_dict(), ("transformers_version", "_name_or_path", "architectures")
    said = {key: value for key, value in config.to_dict().items() if key not in bare or value != bare[key]}
    return {key: value for key, value in said.items() if key not in library}


def _opened(config: Mapping[str, Any]) -> Any:
    inside = config.get(TEXT)
    if not isinstance(inside, dict):
        raise TrimlineError(f"config.json has an unusable {TEXT}: it is {shown(inside)}.", "Fetch the checkpoint again.")
    depth = inside.get("num_hidden_layers")
    if isinstance(depth, int) and depth > MOST_BLOCKS:  # its class would list a kind for each
        raise TrimlineError(f"config.json has an unusable num_hidden_layers: {shown(depth)}.", "Fetch the checkpoint again.")
    try:
        return CONFIG_MAPPING[str(config["model_type"])].from_dict(dict(config))
    except Exception as error:  # whatever its validators meet in values that they do not expect
        raise refused_by_class(error) from None
