"""Exported folders that are damaged in one place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from exporters.onnx.gate.gate import compare_onnx
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.common.events import Events
from tests.exporters.models import OPTIONS

Edit = Callable[[str, NDArray[Any]], NDArray[Any] | None]


def exported(checkpoint: Path, out: Path, recipe: ExportSlice) -> Path:
    """An export that has passed its gate."""
    out.mkdir(parents=True)
    export(checkpoint, recipe, OPTIONS, out, Events())
    return out


def gated(checkpoint: Path, folder: Path, recipe: ExportSlice) -> dict[str, Any]:
    """What the gate finds in a folder that was written before."""
    return compare_onnx(checkpoint, folder, recipe, OPTIONS, Events())


def damaged(folder: Path, out: Path, damage: Callable[[Path], object]) -> Path:
    """A copy with one damage."""
    shutil.copytree(folder, out)
    damage(out)
    return out


def edit_json(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON file in place."""
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(value)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def edit_tensors(folder: Path, edit: Edit) -> None:
    """Gives the initialisers for which ``edit`` returns something other values; there has to be one."""
    model, found = onnx.load(folder / "model.onnx"), 0
    for tensor in model.graph.initializer:
        before = numpy_helper.to_array(tensor)
        after = edit(tensor.name, before)
        if after is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after).astype(before.dtype), tensor.name))
            found += 1
    assert found
    edit_graph(folder, lambda _: None, model)


def edit_graph(folder: Path, edit: Callable[[onnx.ModelProto], object], model: onnx.ModelProto | None = None) -> None:
    """Changes the graph in place; its weights are written anew."""
    model = model or onnx.load(folder / "model.onnx")
    edit(model)
    (folder / "model.onnx.data").unlink()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
