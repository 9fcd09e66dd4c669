"""Which files of a checkpoint folder are its weights: those that transformers opens, in its order, and no others.

A config's ``transformers_weights`` names the file, else it is ``model.safetensors``, else the shards that
``model.safetensors.index.json`` names. Everything else that ends in ``.safetensors`` is somebody else's
(``consolidated.safetensors``, ``model.fp16.safetensors``) and is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError, shown
from pipeline.common.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMED_BY_CONFIG = "transformers_weights"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")
MERGE = "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(WEIGHTS), ADAPTER).merge_and_unload().save_pretrained(NEW)"


@dataclass(frozen=True)
class WeightFiles:
    """What lies in a folder.

    Attributes:
        read: the files that hold the model.
        index: the index that names them; None for a single file.
        other: shards of an index that ``read`` does not come from, as far as they are there.
        whole: whether every shard of that index is there.
        adapter: files of an adapter.
    """

    read: tuple[Path, ...]
    index: Path | None = None
    other: tuple[Path, ...] = ()
    whole: bool = False
    adapter: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of the files that are read."""
        return sum(path.stat().st_size for path in self.read)


def check_adapter_alone(folder: Path) -> None:
    """Says that a folder is an adapter, before anything says that it lacks what a model has.

    Raises:
        TrimlineError: it holds an adapter's files, and neither a config nor weights.
    """
    adapter = _adapter(folder)
    weights = (folder / SINGLE).exists() or (folder / INDEX).exists()
    if adapter and not weights and not (folder / "config.json").exists():
        raise _adapter_alone(folder, adapter)


def weight_files(folder: Path, config: Mapping[str, Any]) -> WeightFiles:
    """The files that transformers opens.

    Raises:
        TrimlineError: there are none, they are pickled, or an index names what is not there.
    """
    named, adapter = config.get(NAMED_BY_CONFIG), _adapter(folder)
    if named is not None:
        return _named(folder, named, adapter)
    if (folder / SINGLE).is_file():
        other, whole = _second_source(folder)
        return WeightFiles((folder / SINGLE,), None, other, whole, adapter)
    if (folder / INDEX).is_file():
        return WeightFiles(_shards(folder, folder / INDEX), folder / INDEX, adapter=adapter)
    raise _nothing_to_read(folder, adapter)


def _named(folder: Path, named: object, adapter: tuple[str, ...]) -> WeightFiles:
    key = f"config.json of {folder} says {NAMED_BY_CONFIG}: {shown(named, 200)}"
    if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
        raise TrimlineError(f"{key}, which is no safetensors file and no index of some.", f"Delete {NAMED_BY_CONFIG} from config.json.")
    if not _is_inside(folder, named):
        raise TrimlineError(f"{key}, which is not a file in it.", f"Fetch that file, or delete {NAMED_BY_CONFIG} from config.json.")
    if named.endswith(".json"):
        return WeightFiles(_shards(folder, folder / named), folder / named, adapter=adapter)
    return WeightFiles((folder / named,), adapter=adapter)


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    names = _shard_names(index)
    if names is None:
        raise TrimlineError(f"{index} has no usable weight_map.", "Fetch the checkpoint again.")
    for name in names:
        if not _is_inside(folder, name):
            raise TrimlineError(
                f"{index} names the shard {shown(name, 200)}, which is not a file in it.", "Fetch that shard, and put it beside the index."
            )
        if not name.endswith(".safetensors"):
            raise TrimlineError(f"{index} names the shard {shown(name, 200)}, which is no safetensors file.", "Fetch the checkpoint again.")
    return tuple(folder / name for name in names)


def _shard_names(index: Path) -> list[str] | None:
    """In the order in which transformers reads them; None where the index is unusable."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        return None
    return sorted(set(weight_map.values()))


def _second_source(folder: Path) -> tuple[tuple[Path, ...], bool]:
    """Shards of an index beside the single file, and whether they are all there; what cannot be read is nobody's source."""
    try:
        names = _shard_names(folder / INDEX) if (folder / INDEX).is_file() else None
    except TrimlineError:
        return (), False
    others = [name for name in names or () if name != SINGLE]
    there = tuple(folder / name for name in others if name.endswith(".safetensors") and _is_inside(folder, name))
    return there, bool(there) and len(there) == len(names or ())


def _adapter(folder: Path) -> tuple[str, ...]:
    return tuple(name for name in ADAPTERS if (folder / name).is_file())


def _nothing_to_read(folder: Path, adapter: tuple[str, ...]) -> TrimlineError:
    if adapter:
        return _adapter_alone(folder, adapter)
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        return TrimlineError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when they are opened.",
            "Convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder).",
        )
    others = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if not others:
        return TrimlineError(f"{folder} holds no safetensors file.", "Give a folder with model.safetensors or its shards.")
    sharded = any("-of-" in name for name in others)
    return TrimlineError(
        f"{folder} holds neither {SINGLE} nor {INDEX}, and transformers does not open {others[0]} by itself.",
        f"Fetch {INDEX}, which belongs to the shards." if sharded else f"Rename {others[0]} to {SINGLE} if it is the model.",
    )


def _adapter_alone(folder: Path, adapter: tuple[str, ...]) -> TrimlineError:
    return TrimlineError(
        f"{folder} holds an adapter ({adapter[0]}) and no weights of a model.",
        f"Merge it into the model that it was trained on, and give the result: {MERGE}.",
    )


def _is_inside(folder: Path, name: str) -> bool:
    try:
        return Path(name).name == name and (folder / name).is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False
