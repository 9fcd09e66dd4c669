"""A checkpoint folder: config.json, safetensors shards, tokenizer files. Read lazily, written whole, never unpickled.

To open one is to decide what it means, by the rules of transformers, once for everything that reads it: which files, which
tensors by which names, which head. What cannot be right is refused here, before anything is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from pipeline.architecture.geometry import Geometry
from pipeline.architecture.wrappers import text_name
from pipeline.checkpoints.nested import TIE, nested
from pipeline.checkpoints.promise import check_size, check_special_tokens, check_tensors
from pipeline.checkpoints.quantised import check_not_quantised
from pipeline.checkpoints.sources_beside import Doubt, doubts_about, same_tensor
from pipeline.checkpoints.stacked import InFiles, file_names, in_memory, names_in_files
from pipeline.checkpoints.stored import InWhole, Shards, StoredTensor, beside_text, by_canonical_name, canonical_name
from pipeline.checkpoints.weight_files import INDEX, NAMED_BY_CONFIG, check_adapter_alone, weight_files
from pipeline.common.errors import TrimlineError, shown
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.foreign import check_files
from pipeline.tensors.tensorfile import save_tensors

SHARD_BYTES = 2**30  # in memory at once when a checkpoint is written


class Checkpoint:
    """A Hugging Face folder opened for reading, one tensor at a time.

    Of a larger model's folder it is the language model inside, as a checkpoint of its own; ``whole_config`` and ``whole_tensors``
    put that back among what stands beside it.

    Attributes:
        config: config.json as the weights have it: a head of its own makes ``tie_word_embeddings`` false.
        nested: the config.json around it, where the folder is a larger model's.
        geometry: of that config; its tensors are the checkpoint's, name by name and shape by shape.
        doubts: what else the folder could mean; whoever makes something of it calls ``demand_no_doubt``.
        passed_over: names of stored tensors that the class has no place for, which are left out.
        bytes: of the files that are read.

    Raises:
        TrimlineError: no such folder, no safetensors in it (pickles are refused), a config that is not JSON or of no
            supported model, a shard that is truncated, corrupt or missing, a quantised model, an adapter alone, or tensors
            that are not those that the config describes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TrimlineError(f"There is no checkpoint folder {folder}.", "Give a folder that holds config.json and safetensors.")
        check_files(self.folder)
        check_adapter_alone(self.folder)
        config = read_json(self.folder / "config.json")
        self._files = weight_files(self.folder, config)
        self._shards = Shards(self._files.read)
        self.bytes = self._files.bytes
        stored = list(self._shards)
        check_not_quantised(self.folder, config, stored)
        self.nested = nested(config)
        self._beside = {} if self.nested is None else beside_text(self._shards)
        own = config if self.nested is None else self.nested.text
        geometry = Geometry.from_config(own) if self.nested is None else self.nested.around(Geometry.from_config(own))
        check_special_tokens(self.folder, own, geometry)
        check_size(self.folder, geometry, len(stored), self.bytes)
        self.passed_over: tuple[str, ...] = ()
        self._held, tied = self._with_head(geometry)
        self._held = in_memory(self._held, geometry, self.folder)
        self.geometry = replace(geometry, tied=tied, beside=sum(prod(stored.shape) for stored in self._beside.values()))
        check_tensors(self.folder, self.geometry, self._held, self._index())
        self.config = {key: value for key, value in own.items() if key != NAMED_BY_CONFIG}
        if tied != geometry.tied:
            self.config[TIE] = tied
        self.doubts: tuple[Doubt, ...] = doubts_about(self.folder, self._files)

    @property
    def locations(self) -> dict[str, str]:
        """Tensor name to shard file name."""
        return {name: stored.shard for name, stored in self._held.items()}

    @property
    def stated(self) -> Mapping[str, Any]:
        """config.json, of the larger model where there is one."""
        return self.config if self.nested is None else self.nested.whole

    def whole_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config.json of a folder like this one, around another config of its language model."""
        if self.nested is None:
            return config
        return {key: value for key, value in self.nested.with_text(config).items() if key != NAMED_BY_CONFIG}

    def whole_tensors(self, tensors: Mapping[str, torch.Tensor], result: Geometry | None = None) -> Mapping[str, torch.Tensor]:
        """The tensors of a folder like this one, around other tensors of its language model, by the names that this one has.

        Args:
            tensors: by the names that the language model's class has for them.
            result: of the model that they are of, where it has other sizes than this one.
        """
        if self.nested is None:
            family = self.geometry.family
            return InFiles(tensors, result or self.geometry, names_in_files(self._held, family)) if family.stored else tensors
        return InWhole(tensors, next(iter(self._held.values())).name, self._beside, self._tensor_beside)

    def _tensor_beside(self, name: str) -> torch.Tensor:
        tensor = self._shards.read(self._beside[name])
        self.demand_finite(name, tensor)
        return tensor

    @property
    def dtype(self) -> torch.dtype:
        """What the model is computed in unless another dtype is asked for: what its config says, else its first tensor's.

        Raises:
            TrimlineError: the config says what is no type of floating point.
        """
        named = self.config.get("dtype") if self.config.get("dtype") is not None else self.config.get("torch_dtype")
        if named is None:
            return self.tensor(next(iter(self._held))).dtype
        found = getattr(torch, named, None) if isinstance(named, str) else None
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise TrimlineError(
                f"config.json of {self.folder} has an unusable dtype: {shown(named)}.", "Say float32, bfloat16 or float16, or delete it."
            )
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor by the name that the model's class has for it.

        Raises:
            TrimlineError: the checkpoint holds no such tensor.
        """
        if name not in self._held:
            raise TrimlineError(f"{self.folder} holds no tensor {name}.", "Its config describes another model than its weights.")
        return self._shards.read(self._held[name])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._held[name].shape

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the language model, in name order."""
        for name in sorted(self._held):
            yield name, self.tensor(name)

    def demand_no_doubt(self) -> None:
        """For whatever makes something of the checkpoint.

        Raises:
            TrimlineError: the folder could mean another model than the one that is read.
        """
        for doubt in self.doubts:
            raise TrimlineError(doubt.problem, doubt.remedy)

    def say_doubts(self, events: Events) -> None:
        """For whatever only measures."""
        for doubt in self.doubts:
            events.note(f"{doubt.problem} {doubt.read} {doubt.remedy}")

    def say_passed_over(self, events: Events) -> None:
        """For whatever a smaller folder is made of it."""
        if self.left_out:
            events.note(self.left_out)

    @property
    def left_out(self) -> str:
        """A sentence about the tensors that are passed over; empty where there are none."""
        family = self.geometry.family
        if not self.passed_over or family.passed_over is None:
            return ""
        many = f" and {len(self.passed_over) - 1:,} more" if len(self.passed_over) > 1 else ""
        return f"{self.passed_over[0]}{many} are left out: transformers' class of {family.model_type} has no {family.passed_over[1]}."

    def say_text_only(self, events: Events, what: str) -> None:
        """For whatever ``what`` is made of a larger model's language model alone."""
        if self.nested is not None:
            events.note(f"{what} holds the language model of this {self.nested.wrapper.model_type} alone, and takes no images")

    def check_finite(self) -> None:
        """Reads every tensor once.

        Raises:
            TrimlineError: a tensor holds NaN or Inf; it is named.
        """
        for name, tensor in self.tensors():
            self.demand_finite(name, tensor)
        for name in self._beside:
            self._tensor_beside(name)

    def demand_finite(self, name: str, tensor: torch.Tensor) -> None:
        """Of a tensor that was read.

        Raises:
            TrimlineError: it holds NaN or Inf.
        """
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            kind = "NaN" if torch.isnan(tensor).any() else "Inf"
            raise TrimlineError(
                f"The tensor {name} of {self.folder} holds {kind}.", "Repair that tensor, or take the checkpoint from where it came."
            )

    def _with_head(self, geometry: Geometry) -> tuple[dict[str, StoredTensor], bool]:
        """Every tensor by its canonical name, and whether the head is the token table.

        As transformers ties: a table or a head that is stored alone is both, equal ones are one, and unlike ones stay two,
        whatever the config says.
        """
        table, head = f"{geometry.family.embeddings[0]}.weight", f"{geometry.family.head}.weight"
        names = {name: None for name, _ in replace(geometry, tied=False).tensors()} | dict.fromkeys(file_names(geometry))
        rename = partial(canonical_name, family=geometry.family, known=names) if self.nested is None else text_name
        held = by_canonical_name(self._shards, rename, self.folder)
        if geometry.family.passed_over is not None:
            blocks = tuple(geometry.family.module(number, "") for number in range(len(geometry.blocks)))
            further = (name for name in held if re.match(geometry.family.passed_over[0], name) and not name.startswith(blocks))
            self.passed_over = tuple(sorted(further))
            held = {name: stored for name, stored in held.items() if name not in self.passed_over}
        if not geometry.tied or head not in held:
            return held, geometry.tied
        if table not in held:
            held[table] = held.pop(head)
        elif self._same(held[table], held[head]):
            del held[head]
        return held, head not in held

    def _same(self, one: StoredTensor, other: StoredTensor) -> bool:
        return same_tensor(self.folder / one.shard, self.folder / other.shard, one, other)

    def _index(self) -> Mapping[str, str]:
        """Tensor to file, of the index that is read or stands beside what is read."""
        named = self.folder / INDEX if self._files.other else self._files.index
        weight_map: Mapping[str, str] = {} if named is None else read_json(named)["weight_map"]
        return weight_map


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
