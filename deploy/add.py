"""More targets for a package that is there already: a new folder, so that what somebody has summed stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.folder import CARD, MANIFEST, RECIPE
from deploy.package import packaged_files, sums
from deploy.placing import link_or_copy
from deploy.recipe import PackageSlice
from deploy.targets import SERVE, Shipment, with_targets, write_targets
from deploy.targets.section import with_section
from deploy.targets.text import write_text
from deploy.targets.triton.engine import shipped_engine
from deploy.verify import verify
from pipeline.artefacts.sums import write_sums
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.common.plain_yaml import read_plain_yaml, write_plain_yaml


def is_package(folder: Path) -> bool:
    """Whether a place is a package folder rather than a recipe file."""
    return (folder / MANIFEST).is_file()


def add_targets(package: Path, targets: Sequence[str], options: RunOptions, out: Path, events: Events) -> None:
    """Writes a copy of ``package`` with folders for more servers into the empty folder ``out``.

    The targets that it has are written anew too. Weights in safetensors are hard links where that is possible.

    Raises:
        TrimlineError: no target is named, the package is not as its manifest says, or a target refuses the model.
    """
    if not targets:
        raise TrimlineError(f"{package} is a package already, and no server is named to add.", "Add, say, --for triton.")
    problems = verify(package)
    if problems:
        raise TrimlineError(f"{package} is not as its manifest says: {problems[0]}.", "Package again from the recipe.")
    manifest = read_json(package / MANIFEST)
    document = _recipe(package / RECIPE)
    had = manifest.get("targets", [])
    if not isinstance(had, list) or not all(isinstance(name, str) for name in had):
        raise TrimlineError(f"{package / MANIFEST} has a list of targets that is none.", "Package again.")
    recipe = with_targets(_slice(document.get("package", {}), package), [*had, *targets])
    try:
        _copy(package, out)
        document["package"] = recipe.model_dump(mode="json", exclude_defaults=True)
        write_text(out / RECIPE, write_plain_yaml(document))
        card = with_section(_text(package / CARD), [])
        written = write_targets(Shipment(out, options, events, shipped_engine(package), card), recipe)
        write_text(out / CARD, with_section(card, written))
        write_json(out / MANIFEST, manifest | {"targets": [target.name for target in written], "files": sums(out, events)})
        write_sums(out)
    except OSError as error:
        raise TrimlineError(f"The package could not be written: {error}.", "Free some space and run it again.") from error


def _recipe(path: Path) -> dict[str, Any]:
    value = read_plain_yaml(_text(path), str(path))
    if not isinstance(value, dict):
        raise TrimlineError(f"{path} holds no recipe.", "Package again.")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrimlineError(f"{path} cannot be read ({error}).", "Package again.") from None


def _copy(package: Path, out: Path) -> None:
    for path in packaged_files(package):
        name = path.relative_to(package)
        if name.parts[0] != SERVE:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, out / name)


def _slice(given: object, package: Path) -> PackageSlice:
    try:
        return PackageSlice.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise TrimlineError(f"{package / RECIPE} has a wrong value at package.{place}: {first['msg']}.", "Package again.") from None
