"""Deploy targets: folders below ``serve/`` of a package, each of which one server starts from.

A target is one file here and one line in ``TARGETS``; ``deploy.recipe.TargetName`` lists the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from deploy.recipe import PackageSlice
from deploy.targets.genai import Genai
from deploy.targets.hub import Hub
from deploy.targets.kserve import KServe
from deploy.targets.llama_cpp import LlamaCpp
from deploy.targets.openvino import Openvino
from deploy.targets.target import ModelToServe, Obstacle, Part, ServerTarget, Shipment
from deploy.targets.triton.target import Triton
from deploy.targets.vllm import Vllm
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import profile_of
from pipeline.common.errors import TrimlineError

TARGETS: dict[str, ServerTarget] = {target.name: target for target in (Genai(), Triton(), KServe(), LlamaCpp(), Openvino(), Vllm(), Hub())}
SERVE = "serve"


def with_targets(recipe: PackageSlice, names: Iterable[str]) -> PackageSlice:
    """The slice with more targets, each once.

    Raises:
        TrimlineError: there is no target of that name.
    """
    together = dict.fromkeys((*recipe.targets, *names))
    for name in together:
        if name not in TARGETS:
            near = get_close_matches(name, TARGETS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(TARGETS)}."
            raise TrimlineError(f"There is no target {name!r}.", hint)
    return recipe.model_copy(update={"targets": tuple(together)})


def wanted_targets(recipe: PackageSlice) -> list[ServerTarget]:
    """The targets that a recipe names and those that they point to, each once, in the registry's order."""
    names: set[str] = set(recipe.targets)
    for name in recipe.targets:
        names |= set(TARGETS[name].brings)
    return [target for name, target in TARGETS.items() if name in names]


def check_targets(recipe: PackageSlice, candidate: ModelToServe) -> None:
    """Whether every wanted target can serve a candidate.

    Raises:
        TrimlineError: one cannot; says why, and what to change.
    """
    for target in wanted_targets(recipe):
        if "onnx" in target.needs and not recipe.onnx:
            raise TrimlineError(f"The target {target.name} serves the ONNX export, and package.onnx is false.", "Leave it at true.")
        obstacle = target.obstacle(candidate)
        if obstacle:
            change = obstacle.change[:1].upper() + obstacle.change[1:]
            raise TrimlineError(f"The target {target.name} cannot serve this model: {obstacle.why}.", f"{change}.")


def write_targets(shipment: Shipment, recipe: PackageSlice) -> list[ServerTarget]:
    """Writes ``serve/<name>/`` for every wanted target into a package; returns these targets.

    Raises:
        TrimlineError: a target cannot serve this model, or what it needs is not in the package.
    """
    targets = wanted_targets(recipe)
    if not targets:
        return []
    checkpoint = Checkpoint(shipment.model)
    check_targets(recipe, ModelToServe.of(checkpoint, profile_of(checkpoint.config)))
    for target in targets:
        for part in sorted(target.needs):
            _demand(shipment.folder / part, target, part)
        out = shipment.folder / SERVE / target.name
        out.mkdir(parents=True)
        target.write(shipment, recipe, out)
    return targets


def _demand(folder: Path, target: ServerTarget, part: Part) -> None:
    if not folder.is_dir():
        raise TrimlineError(f"The target {target.name} needs the folder {part}, which this package lacks.", "Package with it.")


__all__ = [
    "SERVE",
    "TARGETS",
    "ModelToServe",
    "Obstacle",
    "Part",
    "Shipment",
    "ServerTarget",
    "check_targets",
    "wanted_targets",
    "with_targets",
    "write_targets",
]
