"""The gates of folders that were written before, run again; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from exporters.folder import EXPORT, GATE
from exporters.gguf.files import MODEL
from exporters.gguf.gate import gate_file, gate_llama_cpp
from exporters.gguf.recipe import GgufSlice
from exporters.onnx.gate.gate import compare_onnx
from exporters.openvino.gate import compare_openvino
from exporters.openvino.runtime import OPENVINO, has
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan
from pipeline.rebuild.gate import gate_again
from pipeline.rebuild.gguf_form import gguf_form
from pipeline.recover.folder import RECOVERED
from pipeline.recover.gate import demand_settings
from trimline.inspect.graph import inspect_graph

if TYPE_CHECKING:
    from trimline.verify.findings import Sides, Verification

Wanted = TypeVar("Wanted", ExportSlice, GgufSlice)


def rebuilt(folder: Path, name: str, sides: Sides, found: Verification, options: RunOptions, events: Events) -> None:
    """A smaller checkpoint, against the dense model with the plan applied; a trained one, against the one that was trained."""
    if (folder / RECOVERED).exists():
        if sides.checkpoint is not None and sides.plan is None:
            trained = Checkpoint(sides.checkpoint)
            found.check(name, "says what the checkpoint says that was trained", lambda: demand_settings(trained, folder, options))
        found.left_out.append(
            f"{name}: its gate, since the trained weights before they were written are gone{_recorded(folder, found, name)}"
        )
    elif sides.checkpoint is None or sides.plan is None:
        found.left_out.append(
            f"{name}: its gate against the dense model; name that with --against, and the plan with --plan{_recorded(folder, found, name)}"
        )
    else:
        checkpoint, plan = Checkpoint(sides.checkpoint), sides.plan
        found.check(
            name,
            "computes what the dense model with the plan computes",
            lambda: gate_again(checkpoint, Plan.read(plan), folder, options, events),
        )


def onnx(folder: Path, graph: Path, name: str, sides: Sides, found: Verification, options: RunOptions, events: Events) -> None:
    """An ONNX export, against the checkpoint that it was made from."""
    found.check(name, "the graph and every weight that it names are read", lambda: inspect_graph(graph))
    checkpoint = sides.checkpoint
    if checkpoint is None or not (folder / EXPORT).exists():
        found.left_out.append(f"{name}: its gate against the checkpoint; name that with --against{_recorded(folder, found, name)}")
        return
    found.check(
        name, "computes what the checkpoint computes", lambda: compare_onnx(checkpoint, folder, _export_slice(folder), options, events)
    )


def openvino(folder: Path, name: str, sides: Sides, found: Verification, options: RunOptions, events: Events) -> None:
    """An export in OpenVINO's form, against the checkpoint that it was made from."""
    checkpoint = sides.checkpoint
    if not has(OPENVINO):
        found.left_out.append(f"{name}: its gate, since openvino is not installed{_recorded(folder, found, name)}")
    elif checkpoint is None or not (folder / EXPORT).exists():
        found.left_out.append(f"{name}: its gate against the checkpoint; name that with --against{_recorded(folder, found, name)}")
    else:
        recipe = _export_slice(folder)
        found.check(name, "computes what the checkpoint computes", lambda: compare_openvino(checkpoint, folder, recipe, options, events))


def gguf(folder: Path, name: str, sides: Sides, found: Verification, options: RunOptions, events: Events) -> None:
    """A GGUF, against the checkpoint: number by number where llama.cpp did not quantise it, and in llama.cpp where that is there."""
    if sides.checkpoint is None:
        found.left_out.append(f"{name}: its gate against the checkpoint; name that with --against{_recorded(folder, found, name)}")
        return
    source, path = Checkpoint(sides.checkpoint), folder / MODEL
    stated = read_json(folder / EXPORT) if (folder / EXPORT).exists() else {}
    given: dict[str, Any] = {key: stated[key] for key in ("precision", "quantise", "perplexity_bar") if key in stated}
    recipe = _slice(GgufSlice, given, folder)
    form = gguf_form(source.geometry, source.config)
    if recipe.quantise is None:
        found.check(name, "holds what the checkpoint holds", lambda: gate_file(source, form, recipe.precision, path, options, events))
    ran: dict[str, Any] = {}
    found.check(name, "llama.cpp, where it is installed", lambda: ran.update(gate_llama_cpp(source, form, recipe, path, options, events)))
    if ran.get("run") is False:
        found.passed.pop()
        found.left_out.append(f"{name}: in llama.cpp, since {ran['why']}")


def plan(folder: Path, name: str, found: Verification) -> None:
    """A plan: it is read, list by list and tensor by tensor."""
    found.check(name, "the plan is read", lambda: Plan.read(folder))


def _export_slice(folder: Path) -> ExportSlice:
    """What the folder was exported as, with the bar that its gate had."""
    stated = read_json(folder / EXPORT)
    given: dict[str, Any] = {key: stated[key] for key in ("format", "precision", "logits") if key in stated}
    cost = read_json(folder / GATE).get("perplexity") if (folder / GATE).exists() else None
    if isinstance(cost, dict) and "bar" in cost:
        given["perplexity_bar"] = cost["bar"]
    return _slice(ExportSlice, given, folder)


def _slice(kind: type[Wanted], given: dict[str, Any], folder: Path) -> Wanted:
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TrimlineError(f"{folder / 'export.json'} has a wrong value at {place}: {first['msg']}.", "Export again.") from None


def _recorded(folder: Path, found: Verification, name: str) -> str:
    """What the folder's own gate.json says; one that says that it failed is a problem."""
    if not (folder / GATE).exists():
        return ""
    if read_json(folder / GATE).get("passed") is False:
        found.check(name, "its gate", _failed)
    return " (it passed when the folder was written)"


def _failed() -> None:
    raise GateError("gate.json says that it failed.", "Make it again.")
