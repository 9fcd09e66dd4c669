"""The config of a named model, read without its weights: what is known of a model before anything large is fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.nested import Nested, nested
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.live.loading import first_words, quiet_transformers
from pipeline.sources.model import HUB_SECONDS, check_promise, describe, hub_errors, locate
from pipeline.sources.recipe import ModelSlice

CONFIG = "config.json"
WRITTEN_BESIDE_A_GGUF = frozenset({CONFIG, "tokenizer.json"})  # by the conversion, whatever the file is


@dataclass(frozen=True)
class NamedModel:
    """A model before its weights were looked at.

    Attributes:
        name: how people call it.
        kind: ``folder``, ``gguf`` or ``hub``.
        config: its config.json, or what transformers makes of a GGUF's keys; of a larger model its language model's.
        files: names of the files in its folder; of a GGUF, of the folder that it is converted into.
        nested: the config.json around it, of a larger model.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    files: frozenset[str]
    nested: Nested | None = None

    @cached_property
    def geometry(self) -> Geometry:
        own = Geometry.from_config(self.config)
        return own if self.nested is None else self.nested.around(own)


def named_model(recipe: ModelSlice) -> NamedModel:
    """Opens the config of what goes by a name. Of a hub id one small file is fetched, into a folder that is gone afterwards.

    Raises:
        TrimlineError: nothing goes by that name, an unsupported architecture, pickled weights, or no way to the hub.
    """
    kind, place = locate(recipe.source)
    config, files = {"folder": _of_folder, "gguf": _of_gguf, "hub": _of_hub}[kind](place, recipe)
    inside = nested(config)
    found = NamedModel(describe(recipe), kind, config if inside is None else inside.text, files, inside)
    _ = found.geometry  # unsupported, or sizes that no model has
    return found


def _of_folder(place: str, recipe: ModelSlice) -> tuple[dict[str, Any], frozenset[str]]:
    checkpoint = Checkpoint(Path(place))
    return dict(checkpoint.stated), frozenset(path.name for path in checkpoint.folder.iterdir())


def _of_gguf(place: str, recipe: ModelSlice) -> tuple[dict[str, Any], frozenset[str]]:
    from transformers import AutoConfig

    path = Path(place)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    except Exception as error:  # the reader unpacks what the file says without looking, and raises whatever comes of it
        raise TrimlineError(
            f"{path.name} cannot be read as a GGUF model ({first_words(error, 200)}).", "Fetch it again, or convert it to safetensors."
        ) from error
    check_promise(path, config)
    return config | {"dtype": "float32" if recipe.dtype == "auto" else recipe.dtype}, WRITTEN_BESIDE_A_GGUF


def _of_hub(place: str, recipe: ModelSlice) -> tuple[dict[str, Any], frozenset[str]]:
    from huggingface_hub import HfApi, hf_hub_download

    with tempfile.TemporaryDirectory() as scratch, hub_errors(place):
        # Asked first, with a limit: a network that swallows packets is then noticed in seconds.
        siblings = HfApi().model_info(place, revision=recipe.revision, timeout=HUB_SECONDS).siblings or ()
        files = frozenset(str(file.rfilename) for file in siblings)
        if not any(name.endswith(".safetensors") for name in files):
            raise TrimlineError(
                f"{place} on the hub holds no safetensors file.", "Pick a model that has them, or convert it where you trust it."
            )
        return read_json(Path(hf_hub_download(place, CONFIG, revision=recipe.revision, local_dir=scratch))), files
