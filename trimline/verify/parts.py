"""A package in a run's store against the artefacts that it was put together from: a sum that was made again for a changed file is no other proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.package import NOT_SHIPPED
from pipeline.artefacts.sums import SUMS, Problem, file_digest, read_sums

PARTS = {"model": ("rebuild", "recover"), "onnx": ("export",)}  # folder of a package to the stages that it may be from


def unlike_parts(store: Path, package: Path, name: str, inputs: Any) -> Iterator[Problem]:
    """What in a package's parts is not as in their artefacts.

    Args:
        store: of the run.
        package: the folder to ship.
        name: how it is called in problems.
        inputs: of the package's artefact: names of other artefacts to their keys, as its record says.
    """
    for part, stages in PARTS.items():
        origin = _made(store, stages, inputs if isinstance(inputs, Mapping) else {})
        if origin is None or not (package / part).is_dir() or not (origin / SUMS).is_file():
            continue
        wanted = {file: digest for file, digest in read_sums(origin).items() if file not in NOT_SHIPPED}
        for file, digest in wanted.items():
            path = package / part / file
            if not path.is_file():
                yield Problem(f"{name}/{part}/{file}", f"missing, and {origin.name} has it")
            elif file_digest(path) != digest:
                yield Problem(f"{name}/{part}/{file}", f"it is not the file of {origin.name}")
        there = (path.relative_to(package / part).as_posix() for path in sorted((package / part).rglob("*")) if path.is_file())
        yield from (Problem(f"{name}/{part}/{file}", f"{origin.name} has no such file") for file in there if file not in wanted)


def _made(store: Path, stages: tuple[str, ...], inputs: Mapping[str, Any]) -> Path | None:
    """The artefact of one of these stages among the inputs."""
    for name, key in inputs.items():
        stage = str(name).replace(",", " ").split(" ", 1)[0]  # export pruned, rebuild, round 2
        place = store / f"{stage}-{key[:12]}" if isinstance(key, str) and key.isalnum() else None
        if stage in stages and place is not None and place.is_dir():
            return place
    return None
