"""``trimline verify``: every sum again, then every shape, then every gate whose two sides are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.folder import HTML, MANIFEST, RECIPE
from deploy.shipping import is_same_package
from deploy.verify import verify as verify_package
from exporters.folder import EXPORT
from exporters.gguf.files import MODEL as GGUF
from exporters.openvino.files import MODEL as OPENVINO
from pipeline.artefacts.artefact import PARTIAL, RECORD, WORK
from pipeline.artefacts.sums import SUMS, Problem, check_sums
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.common.plain_yaml import read_plain_yaml
from pipeline.plan.folder import PLAN, UPDATES
from pipeline.sources.model import check_checkpoint, checkpoint_folder, identify
from pipeline.sources.recipe import ModelSlice
from trimline.inspect.read import graph_file
from trimline.stages.names import KERNEL_TIMINGS, SHIPPED
from trimline.verify.findings import Sides, Verification
from trimline.verify.parts import unlike_parts

STORE = "store"
LOCK = ".lock"
CONFIG = "config.json"  # of a checkpoint
VERIFIED = "Give a package, a run's output folder, or a folder that a verb of this version wrote."


def verify_folder(
    folder: Path, *, against: Path | None = None, plan: Path | None = None, quick: bool = False, options: RunOptions, events: Events
) -> Verification:
    """Checks a package, the output folder of a run, or any folder that a verb wrote.

    Shapes and gates are looked at only where every sum is right: a changed file is named, not opened.

    Args:
        folder: what to check.
        against: the checkpoint that it was made from, of a package the dense one; a run holds it itself.
        plan: of a rebuilt checkpoint or a package, beside ``against``.
        quick: only the sums.
        options: threads.
        events: progress.

    Raises:
        TrimlineError: the folder carries no sums.
    """
    folder, found = Path(folder), Verification()
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"There is no folder {folder}"
        raise TrimlineError(f"{what}.", VERIFIED)
    if not any(folder.iterdir()):
        raise TrimlineError(f"{folder} is empty, so there is nothing to check.", VERIFIED)
    sides = Sides(None if against is None else checkpoint_folder(against), plan)
    if (folder / STORE).is_dir():
        _verify_run(folder, found, quick, options, events)
    elif (folder / MANIFEST).exists():
        found.problems += verify_package(folder)
        _after_sums(found, folder.name, quick, lambda: _examine_package(folder, folder.name, sides, found, options, events))
    elif (folder / SUMS).exists():
        found.problems += check_sums(folder)
        _after_sums(found, folder.name, quick, lambda: _examine(folder, folder.name, sides, found, options, events))
    else:
        raise TrimlineError(
            f"{folder} carries neither {MANIFEST} nor {SUMS}, so there is nothing to check it against.",
            VERIFIED,
        )
    return found


def _after_sums(found: Verification, name: str, quick: bool, examine: Callable[[], None]) -> None:
    if found.problems:
        found.left_out.append(f"{name}: shapes and gates, since files changed")
        return
    found.passed.append(f"{name}: every file against its SHA-256")
    if not quick:
        examine()


def _verify_run(folder: Path, found: Verification, quick: bool, options: RunOptions, events: Events) -> None:
    """Every artefact in the store, what lies beside them, the folder to ship, and the link to the report."""
    store, artefacts = folder / STORE, []
    for path in sorted(store.iterdir()):
        name = f"{STORE}/{path.name}"
        if path.name.startswith((PARTIAL, WORK)):
            found.left_out.append(f"{name}: of a run that has not ended; the same command goes on from it, or clears it away")
        elif (path / SUMS).exists() or (path / RECORD).exists():
            artefacts.append(path)
            found.problems += [Problem(f"{name}/{problem.path}", problem.what) for problem in check_sums(path)]
        elif path.name not in (LOCK, KERNEL_TIMINGS):
            found.problems.append(Problem(name, "no stage left it there"))
    found.problems += _strange_beside(folder)
    _after_sums(found, folder.name, quick, lambda: _examine_store(store, artefacts, found, options, events))


def _strange_beside(folder: Path) -> list[Problem]:
    known = {STORE, SHIPPED, HTML}
    strange = [Problem(path.name, "the run left no such file there") for path in sorted(folder.iterdir()) if path.name not in known]
    for name in (HTML, SHIPPED):
        path = folder / name
        if path.is_symlink():
            if not (path.exists() and path.resolve().is_relative_to((folder / STORE).resolve())):
                strange.append(Problem(name, "the link leads to nothing in the store"))
        elif path.exists():
            strange += _shipped(path) if name == SHIPPED else [Problem(name, "it is no link into the store")]
    return strange


def _shipped(package: Path) -> list[Problem]:
    """What is wrong with the folder to ship, which is a copy of a package in the store."""
    if not any(is_same_package(made, package) for made in (package.parent / STORE).glob(f"package-*/{SHIPPED}")):
        return [Problem(SHIPPED, "it is no package of this store")]
    return [Problem(f"{SHIPPED}/{problem.path}", problem.what) for problem in verify_package(package)]


def _examine_store(store: Path, artefacts: list[Path], found: Verification, options: RunOptions, events: Events) -> None:
    for path in artefacts:
        name, stage, depends = f"{STORE}/{path.name}", *_record(path)
        if stage == "package":
            # Its parts are artefacts of this store, which are examined as such.
            found.problems += [Problem(f"{name}/{SHIPPED}/{problem.path}", problem.what) for problem in verify_package(path / SHIPPED)]
            found.problems += unlike_parts(store, path / SHIPPED, f"{name}/{SHIPPED}", depends.get("inputs"))
        elif stage == "source":
            _examine_source(path, name, depends.get("model"), found)
        else:
            _examine(path, name, _sides(store, stage, depends.get("inputs")), found, options, events)


def _record(artefact: Path) -> tuple[str, dict[str, Any]]:
    """(stage, what it depended on), of an artefact that anybody may have written."""
    record = read_json(artefact / RECORD)
    stage, depends = record.get("stage"), record.get("depends")
    if not isinstance(stage, str) or not isinstance(depends, dict):
        raise TrimlineError(f"{artefact / RECORD} is no record of a stage.", "Run the recipe again.")
    return stage, depends


def _examine_source(path: Path, name: str, model: Any, found: Verification) -> None:
    """A converted checkpoint lies in the artefact; a folder of the user's is pointed to, and may have changed."""
    folder = checkpoint_folder(path)
    if folder.is_relative_to(path):
        found.check(name, "tensors as its config says, all finite", lambda: check_checkpoint(Checkpoint(folder)))
    elif _pointed_to(folder, model) is None:
        found.left_out.append(f"{name}: the dense model {folder} has changed or is gone, so nothing can be gated against it")


def _sides(store: Path, stage: str, inputs: Any) -> Sides:
    def made(name: str) -> Path | None:
        key = inputs.get(name) if isinstance(inputs, dict) else None
        place = store / f"{name}-{key[:12]}" if isinstance(key, str) and key.isalnum() else None
        return place if place is not None and place.is_dir() else None

    if stage == "rebuild":
        dense = made("source")
        return Sides(None if dense is None else _unchanged(dense), made("prune"))
    if stage == "recover":
        return Sides(made("rebuild"))
    if stage == "export":
        origin = next((place for name in ("source", "rebuild", "recover") if (place := made(name))), None)
        return Sides(None if origin is None else _unchanged(origin))
    return Sides()


def _unchanged(artefact: Path) -> Path | None:
    """The checkpoint that an artefact stands for, where it still is the one that it was."""
    folder = checkpoint_folder(artefact)
    return folder if folder.is_relative_to(artefact) else _pointed_to(folder, _record(artefact)[1].get("model"))


def _pointed_to(folder: Path, model: Any) -> Path | None:
    """A folder of the user's, where it still is what a source artefact says."""
    known = model.get("sha256") if isinstance(model, dict) else None
    return folder if folder.is_dir() and identify(ModelSlice(source=str(folder)))["sha256"] == known else None


def _examine_package(folder: Path, name: str, dense: Sides, found: Verification, options: RunOptions, events: Events) -> None:
    model = folder / "model"
    _examine(model, f"{name}/model", Sides() if _was_trained(folder) else dense, found, options, events)
    for place in sorted({path.parent for pattern in ("*.onnx", "*.gguf", OPENVINO) for path in folder.rglob(pattern)}):
        sides = Sides(model) if place == folder / "onnx" or (place / GGUF).exists() or (place / OPENVINO).exists() else Sides()
        _examine(place, f"{name}/{place.relative_to(folder).as_posix()}", sides, found, options, events)


def _was_trained(package: Path) -> bool:
    """Whether its recipe trains what it rebuilt, which is no dense model with a plan any more."""
    recipe = read_plain_yaml((package / RECIPE).read_text(encoding="utf-8"), RECIPE) if (package / RECIPE).is_file() else None
    return isinstance(recipe, dict) and bool(recipe.get("recover"))


def _examine(folder: Path, name: str, sides: Sides, found: Verification, options: RunOptions, events: Events) -> None:
    """One folder by what is in it."""
    from trimline.verify import gates as regating

    graph = graph_file(folder)
    exported = (graph is not None or (folder / OPENVINO).is_file()) and (
        folder / EXPORT
    ).exists()  # which may have the checkpoint's config.json beside the graph
    if (folder / CONFIG).exists() and not exported:
        found.check(name, "tensors as its config says, all finite", lambda: check_checkpoint(Checkpoint(folder)))
        regating.rebuilt(folder, name, sides, found, options, events)
    elif graph is not None:
        regating.onnx(folder, graph, name, sides, found, options, events)
    elif (folder / OPENVINO).is_file():
        regating.openvino(folder, name, sides, found, options, events)
    elif (folder / GGUF).exists():
        regating.gguf(folder, name, sides, found, options, events)
    elif (folder / PLAN).exists() and (folder / UPDATES).exists():
        regating.plan(folder, name, found)
