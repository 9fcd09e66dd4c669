"""The valid things that are damaged: a tiny model in every form in which it can be handed in, made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch

from deploy.package import PackageParts, package
from deploy.recipe import PackageSlice
from exporters.gguf.files import write_gguf
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import make_artefact
from pipeline.checkpoints.checkpoint import INDEX, Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan
from pipeline.rebuild.gguf_form import gguf_form
from pipeline.sources.model import identify
from pipeline.sources.model import source as write_source
from pipeline.sources.recipe import ModelSlice
from pipeline.tensors.tensorfile import save_tensors
from tests.deploy.parts import made_parts
from tests.tiny import tiny_model

FFN = (32, 16)  # channels that stay
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Material:
    """Folders and files; cases read them only.

    Attributes:
        dense: stock checkpoint.
        sharded: the same in two shards with an index.
        uneven: rebuilt in profile ``decilm``, with its modelling files.
        plan, onnx, package: what the stages make of it.
        run: an output folder whose store holds the source, the plan and the smaller checkpoint.
        gguf: the dense model as a GGUF; ``gguf_head`` bytes of it stand before the tensors.
        recipes: the texts of all recipes in the repository.
        texts: folder with text.txt, text.jsonl and text.parquet.
    """

    dense: Path
    sharded: Path
    uneven: Path
    plan: Path
    onnx: Path
    package: Path
    run: Path
    gguf: Path
    gguf_head: int
    recipes: tuple[str, ...]
    texts: Path


def made(root: Path) -> Material:
    """Everything below ``root``."""
    dense = tiny_model("llama", root / "dense", num_hidden_layers=2, intermediate_size=64)
    parts = made_parts(root / "parts", dense, FFN, Profile.DECILM, ExportSlice(), RunOptions(threads=1))
    assert parts.onnx is not None
    (root / "package").mkdir()
    package(parts, PackageSlice(), root / "package", Events())
    checkpoint = Checkpoint(dense)
    write_gguf(checkpoint, gguf_form(checkpoint.geometry, checkpoint.config), "fp32", root / "model.gguf", Events())
    content = (root / "model.gguf").read_bytes()
    return Material(
        dense=dense,
        sharded=_sharded(checkpoint, root / "sharded"),
        uneven=parts.model,
        plan=_with_tensors(parts.plan, root / "plan"),
        onnx=parts.onnx,
        package=root / "package",
        run=_run(dense, parts, root / "run"),
        gguf=root / "model.gguf",
        gguf_head=content.find(b"output_norm.weight") + 200,
        recipes=tuple(path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))),
        texts=_texts(root / "texts"),
    )


def _run(dense: Path, parts: PackageParts, folder: Path) -> Path:
    quiet, depends = Events(), {"inputs": {}}
    named = ModelSlice(source=str(dense))
    source = make_artefact(
        folder / "store", "source", {"model": identify(named)}, lambda out: write_source(named, RunOptions(), out, quiet), quiet
    )
    plan = make_artefact(folder / "store", "prune", depends, _copied(parts.plan), quiet)
    inputs = {"inputs": {"source": source.key, "prune": plan.key}}
    make_artefact(folder / "store", "rebuild", inputs, _copied(parts.model), quiet)
    return folder


def _copied(source: Path) -> Callable[[Path], object]:
    return lambda out: [shutil.copy(path, out / path.name) for path in source.iterdir()]


def _sharded(checkpoint: Checkpoint, folder: Path) -> Path:
    folder.mkdir()
    for path in checkpoint.folder.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    names, shards = sorted(checkpoint.locations), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for shard, half in zip(shards, halves, strict=True):
        save_tensors(folder / shard, {name: checkpoint.tensor(name) for name in half})
    weight_map = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    write_json(folder / INDEX, {"metadata": {"total_size": 0}, "weight_map": weight_map})
    return folder


def _with_tensors(source: Path, folder: Path) -> Path:
    """The plan with an update and scores, so that there are tensors to damage."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    updates = {f"model.layers.{block}.mlp.down_proj.weight": torch.randn(64, width, generator=generator) for block, width in enumerate(FFN)}
    scores = {f"0.ffn.{block}": torch.randn(64, generator=generator) for block in range(len(FFN))}
    replace(Plan.read(source), updates=updates, scores=scores).write(folder)
    return folder


def _texts(folder: Path) -> Path:
    folder.mkdir()
    rows = [f"Line {number} of an invented text, naïve and long enough." for number in range(40)]
    (folder / "text.txt").write_text("\n".join(rows), encoding="utf-8")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": row, "number": 3}) + "\n" for row in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": rows, "number": list(range(40))}), folder / "text.parquet")
    return folder
