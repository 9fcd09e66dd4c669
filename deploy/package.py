"""The package: the folder that a user ships, with a sum of every file in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploy.card import model_card
from deploy.folder import CARD, HTML, MANIFEST, MARKDOWN, RECIPE, REPORT, RUN
from deploy.placing import link_or_copy
from deploy.recipe import PackageSlice
from deploy.sbom import SBOM, write_sbom
from deploy.targets import ServerTarget, Shipment, write_targets
from deploy.targets.openvino import EXPORTED
from deploy.targets.section import with_section
from deploy.targets.triton.engine import PLAN as ENGINE_PLAN
from exporters.folder import GATE
from exporters.openvino.files import MODEL as OPENVINO
from exporters.tensorrt.folder import RECORD as RECORD_OF_ENGINE
from pipeline.artefacts.artefact import MEASURED as MEASURED_RECORD
from pipeline.artefacts.artefact import RECORD, SUMS, file_digest
from pipeline.artefacts.sums import names_below, write_sums
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.plan.folder import PLAN
from pipeline.recover.folder import RECOVERED

FORMAT = 1
REPORTS = (HTML, MARKDOWN)
MEASURED = (*REPORTS, RUN)  # with an engine, the only files that differ when the same recipe is run again on the same machine
ENGINE_FILES = (ENGINE_PLAN, RECORD_OF_ENGINE)  # TensorRT chooses kernels by timing them
# Records of stages; the plan stands at the top of the package.
NOT_SHIPPED = {RECORD, MEASURED_RECORD, SUMS, GATE, PLAN, RECOVERED}
MEASURED_OF_MODELS = ("parameters", "perplexity", "window_losses", "peak_memory_bytes", "cold_start_seconds")
MADE_WITH = (
    "trimline",
    "torch",
    "transformers",
    "safetensors",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "openvino",
    "openvino-genai",
    "nncf",
)


@dataclass(frozen=True)
class PackageParts:
    """What goes into a package.

    Attributes:
        model: folder of the smaller checkpoint.
        onnx: folder of its export into ONNX, or into OpenVINO's form; None without one.
        plan: folder with plan.json.
        report: folder with report.json, report.html and report.md.
        recipe: the recipe's YAML.
        command: what was typed.
        options: device, dtype and threads that everything was computed with.
        engine: folder of its TensorRT engine, None without one.
    """

    model: Path
    onnx: Path | None
    plan: Path
    report: Path
    recipe: str
    command: str
    options: RunOptions
    engine: Path | None = None


def package(parts: PackageParts, recipe: PackageSlice, out: Path, events: Events) -> None:
    """Stage: writes the folder to ship into ``out``.

    The checkpoint's weights are hard links where the file system allows it and cost no second copy. Everything but
    ``MEASURED``, an engine and the sums of those files is the same byte for byte for the same parts.

    Raises:
        TrimlineError: a part is missing, or the disk is full.
    """
    report = read_json(parts.report / REPORT)
    exported = recipe.onnx and parts.onnx is not None
    in_openvino = parts.onnx is not None and (parts.onnx / OPENVINO).is_file()
    with_onnx = exported and not in_openvino
    try:
        _place(parts.model, out / "model")
        if exported and parts.onnx is not None:
            _place(parts.onnx, out / (EXPORTED if in_openvino else "onnx"))
        for name in REPORTS:
            link_or_copy(parts.report / name, out / name)
        link_or_copy(parts.plan / PLAN, out / PLAN)
        (out / RECIPE).write_text(parts.recipe, encoding="utf-8", newline="\n")
        card = _card(parts, recipe, report, out, with_onnx)
        targets = write_targets(Shipment(out, parts.options, events, parts.engine, card), recipe)
        (out / CARD).write_text(with_section(card, targets), encoding="utf-8", newline="\n")
        write_json(out / RUN, run_record(report))
        write_sbom(out / SBOM)
        write_json(out / MANIFEST, manifest(parts, report, targets, out, events))
        write_sums(out)  # the manifest's own among them
    except OSError as error:
        raise TrimlineError(f"The package could not be written: {error}.", "Free some space, or run the missing stage again.") from error


def run_record(report: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, with raw samples, and when the package was made."""
    models = {row["name"]: {key: row.get(key) for key in MEASURED_OF_MODELS} for row in report["models"]}
    return {
        "packaged": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": report["stages"],
        "environment": report["environment"],
        "models": models,
        "workloads": report["workloads"],
        "texts": report["texts"],
        "by_text": report["by_text"],
        "retrieval": report["retrieval"],
        "tasks": report["tasks"],
        "recovery": report["recovery"],
        "model_source": report["model_source"],
    }


def manifest(parts: PackageParts, report: dict[str, Any], targets: list[ServerTarget], out: Path, events: Events) -> dict[str, Any]:
    """What made the package, and SHA-256 and bytes of every other file in it."""
    return {
        "format": FORMAT,
        "title": report["title"],
        "command": parts.command,
        "made_with": dict(_versions()),
        "settings": parts.options.as_record(),
        "targets": [target.name for target in targets],
        "files": sums(out, events),
    }


def packaged_files(folder: Path) -> list[Path]:
    """Every file below ``folder`` that the manifest sums, in path order."""
    return [folder / name for name in names_below(folder) if name not in (MANIFEST, SUMS)]


def _place(source: Path, target: Path) -> None:
    """All of an artefact but its records: a stage that wrote it has chosen what comes along (``pipeline.sources.companions``)."""
    for name in names_below(source):
        if name not in NOT_SHIPPED and not any(part.startswith(".") for part in name.split("/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source / name, target / name)


def _card(parts: PackageParts, recipe: PackageSlice, report: dict[str, Any], out: Path, with_onnx: bool) -> str:
    licences = sorted(path.relative_to(out).as_posix() for path in (out / "model").glob("LICENSE*"))
    config, plan = read_json(parts.model / "config.json"), read_json(parts.plan / PLAN)
    return model_card(
        report | {"command": parts.command}, config, plan, parts.recipe, recipe, onnx=with_onnx, licence_files=tuple(licences)
    )


def sums(out: Path, events: Events) -> dict[str, Any]:
    """SHA-256 and bytes of every file that the manifest sums, by its path relative to the package."""
    files = packaged_files(out)
    found: dict[str, Any] = {}
    with events.progress("summing files", len(files)) as advance:
        for path in files:
            name = path.relative_to(out).as_posix()
            measured = name in MEASURED or path.name in ENGINE_FILES
            found[name] = {"sha256": file_digest(path), "bytes": path.stat().st_size, "measured": measured}
            advance(1)
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in MADE_WITH:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
