"""Shapes of the results table's rows: what decides how fast a row is.

Dense kernels take as long for one value as for another. So rows are timed on models of their shapes, cut from the dense
weights: rows of equal shapes share their timings, and a row that was measured elsewhere can be timed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from exporters.onnx.stage import export
from exporters.openvino.stage import export_openvino
from exporters.recipe import ExportSlice
from pipeline.architecture.families import Family
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import whole_folder
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild

QUIET = Events()
EXPORT = ExportSlice()
BIAS = 1e-3  # not 0: a runtime may leave out an addition of zeros
Shape = dict[str, Any]


def shape_of(geometry: Geometry) -> Shape:
    """Per block the FFN channels and KV groups, and the projections that have a bias beside their family's."""
    return {"blocks": [[block.ffn, block.kv_groups] for block in geometry.blocks], "biases": sorted(geometry.biases)}


def export_shape(source: Path, shape: Shape, options: RunOptions, out: Path, recipe: ExportSlice = EXPORT) -> None:
    """A model of a shape, cut from the first or the last units of the dense one, as ONNX or in OpenVINO's form in ``out``.

    Raises:
        TrimlineError: the model cannot be exported.
    """
    dense = Checkpoint(source)
    if shape == shape_of(dense.geometry):
        _write(source, recipe, options, out)
        return
    try:
        _export_cut(dense, shape, False, options, out, recipe)
    except GateError:  # units at random make models whose logits fp32 itself may hardly know
        for place in out.iterdir():
            place.unlink()
        _export_cut(dense, shape, True, options, out, recipe)


def _write(model: Path, recipe: ExportSlice, options: RunOptions, out: Path) -> None:
    write = export_openvino if recipe.format == "openvino" else export
    write(model, recipe, options, out, QUIET)


def _export_cut(dense: Checkpoint, shape: Shape, last: bool, options: RunOptions, out: Path, recipe: ExportSlice) -> None:
    end = "last" if last else "first"
    plan, model = (out.with_name(f"{out.name}-{end}-{stage}") for stage in ("plan", "model"))
    with whole_folder(plan) as place:
        plan_of(dense.geometry, shape, last).write(place)
    with whole_folder(model) as place:
        rebuild(dense.folder, plan, RebuildSlice(profile=Profile.FREE), options, place, QUIET)
    _write(model, recipe, options, out)


def plan_of(geometry: Geometry, shape: Shape, last: bool = False) -> Plan:
    """The plan that leaves the first units, or the last ones, of the first blocks."""
    gone = len(geometry.blocks) - len(shape["blocks"])

    def units(kept: int, of: int) -> tuple[int, ...]:
        return tuple(range(of - kept, of) if last else range(kept))

    pairs = list(zip(shape["blocks"], geometry.blocks, strict=False))
    selection = Selection(
        blocks=tuple(range(len(shape["blocks"]))),
        ffn=(*(units(ffn, block.ffn) for (ffn, _), block in pairs), *[()] * gone),
        kv_groups=(*(units(groups, block.kv_groups) for (_, groups), block in pairs), *[()] * gone),
    )
    added = tuple(sorted(set(shape["biases"]) - geometry.biases))
    return Plan(geometry.family, selection, (), updates=_biases(geometry.family, geometry.hidden, selection, added), biases=added)


def _biases(family: Family, hidden: int, selection: Selection, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Of readers, which write the residual stream; absent sublayers have none."""
    readers = {linear.name: linear for linear in family.linears if linear.name in names}
    return {
        f"{family.module(block, name)}.bias": torch.full((hidden,), BIAS)
        for name, linear in readers.items()
        for block in selection.blocks
        if selection.units(linear.sublayer)[block]
    }
