"""A checkpoint folder: config.json, safetensors shards, tokenizer files. Read lazily, written whole, never unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import TrimlineError, shortened, shown
from pipeline.common.files import read_json, write_json
from pipeline.common.foreign import check_files
from pipeline.tensors.tensorfile import save_tensors

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_BYTES = 2**30  # in memory at once when a checkpoint is written


class Checkpoint:
    """A Hugging Face folder opened for reading, one tensor at a time.

    Raises:
        TrimlineError: no such folder, no safetensors in it (pickles are refused), a config that is not JSON, or a
            shard that is truncated, corrupt or missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TrimlineError(f"There is no checkpoint folder {folder}.", "Give a folder that holds config.json and safetensors.")
        check_files(self.folder)
        self.config = read_json(self.folder / "config.json")
        self._shards = {path.name: _open_shard(path) for path in self._shard_paths()}

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.from_config(self.config)

    @cached_property
    def locations(self) -> dict[str, str]:
        """Tensor name to shard file name."""
        found: dict[str, str] = {}
        for shard, handle in self._shards.items():
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if name in found:
                    raise TrimlineError(f"The tensor {name} stands in both {found[name]} and {shard}.", "Fetch the checkpoint again.")
                found[name] = shard
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor by its stored name.

        Raises:
            TrimlineError: the checkpoint holds no such tensor.
        """
        if name not in self.locations:
            raise TrimlineError(f"{self.folder} holds no tensor {name}.", "Its config describes another model than its weights.")
        return self._shards[self.locations[name]].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shards[self.locations[name]].get_slice(name).get_shape())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, in name order."""
        for name in sorted(self.locations):
            yield name, self.tensor(name)

    def _shard_paths(self) -> list[Path]:
        if (self.folder / INDEX).exists():
            weight_map = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
                raise TrimlineError(f"{self.folder / INDEX} has no usable weight_map.", "Fetch the checkpoint again.")
            return [_inside(self.folder, name) for name in sorted(set(weight_map.values()))]
        paths = sorted(self.folder.glob("*.safetensors"))
        if paths:
            return paths
        pickles = [path.name for pattern in PICKLES for path in sorted(self.folder.glob(pattern))]
        if pickles:
            raise TrimlineError(
                f"{self.folder} holds pickled weights ({pickles[0]}), which can run code when they are opened.",
                "Convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder).",
            )
        raise TrimlineError(f"{self.folder} holds no safetensors file.", "Give a folder with model.safetensors or its shards.")

    def check_finite(self) -> None:
        """Reads every tensor once.

        Raises:
            TrimlineError: a tensor holds NaN or Inf; it is named.
        """
        for name, tensor in self.tensors():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                kind = "NaN" if torch.isnan(tensor).any() else "Inf"
                raise TrimlineError(
                    f"The tensor {name} of {self.folder} holds {kind}.", "Fetch the checkpoint again, or repair that tensor."
                )


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes config.json and safetensors (with an index above one shard) into ``folder``, same input same bytes.

    Each tensor is asked for once, in name order, and let go of with its shard: a mapping may make them on request.
    """
    write_json(folder / "config.json", config)
    shards: list[list[str]] = []
    size = 0
    for number, shard in enumerate(_shards(tensors)):
        save_tensors(folder / _part(number), shard)
        shards.append(list(shard))
        size += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) == 1:
        (folder / _part(0)).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):  # how many there are is known now
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _part(number)).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    filled = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if shard and filled + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += tensor.nbytes
    yield shard


def _part(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).name != name or not _is_file(path):
        raise TrimlineError(
            f"The index of {folder} names the shard {shown(name, 200)}, which is not a file in it.", "Fetch the checkpoint again."
        )
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TrimlineError(f"{path} is truncated or corrupt ({shortened(str(error), 200)}).", "Fetch the checkpoint again.") from None
