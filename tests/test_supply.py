"""Dependencies: each has a lower and an upper bound, and both files of versions lie within them; the bill of materials is whole."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from deploy.sbom import ROOT, bill_of_materials, installed, licences_page

PROJECT = Path(__file__).parents[1]
SILENT = {"cuda-toolkit"}  # distributions whose metadata name no licence: NVIDIA's empty one that names its libraries


def requirements() -> list[Requirement]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in texts if not text.startswith("trimline[")]


def pinned(name: str) -> dict[str, Version]:
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(number) for name, number in pairs}


def lower(requirement: Requirement) -> Version:
    return next(Version(part.version) for part in requirement.specifier if part.operator == ">=")


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement):
    assert sorted(part.operator for part in requirement.specifier) == ["<", ">="]


def test_the_versions_that_are_tested_lie_within_the_bounds():
    tested = pinned("constraints.txt")
    outside = [
        f"{r}: {tested[name]}" for r in requirements() if (name := canonicalize_name(r.name)) in tested and tested[name] not in r.specifier
    ]
    assert outside == []
    assert len([r for r in requirements() if canonicalize_name(r.name) in tested]) > 35


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = pinned("constraints-oldest.txt")
    gpu = {
        "onnxruntime-gpu",
        "onnxruntime-genai-cuda",
        "tensorrt-cu13",
        "tensorrt-rtx-cu12",
        "tensorrt-rtx-cu12-bindings",
        "tensorrt-rtx-cu12-libs",
    }
    wanted = {canonicalize_name(r.name): lower(r) for r in requirements() if r.name not in gpu}
    assert oldest == wanted


def test_the_bill_of_materials_is_the_same_again_and_names_every_distribution():
    bill = bill_of_materials()
    assert json.dumps(bill) == json.dumps(bill_of_materials())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert "serialNumber" not in bill
    assert "timestamp" not in bill["metadata"]
    assert bill["metadata"]["component"]["name"] == ROOT
    names = {component["name"]: component for component in bill["components"]}
    assert {"torch", "transformers", "safetensors", "onnx", "numpy", "pydantic-core"} <= set(names)
    assert names["numpy"]["version"] == version("numpy")
    assert names["pydantic"]["licenses"] == [{"license": {"id": "MIT"}}]
    refs = {component["bom-ref"] for component in (*bill["components"], bill["metadata"]["component"])}
    assert {entry["ref"] for entry in bill["dependencies"]} == refs
    needed = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in bill["dependencies"]}
    assert f"pkg:pypi/pydantic-core@{version('pydantic-core')}" in needed[f"pkg:pypi/pydantic@{version('pydantic')}"]


def test_the_bill_of_materials_is_valid_cyclonedx():
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    try:
        fault = validator.validate_str(json.dumps(bill_of_materials()))
    except Exception as error:  # the library's own, where its optional validator is not installed
        pytest.skip(f"the schema cannot be checked here: {error}")
    assert fault is None


def test_an_accepted_advisory_is_of_something_installed_and_says_why():
    lines = (PROJECT / ".ci/accepted-advisories.txt").read_text(encoding="utf-8").splitlines()
    for line in (line for line in lines if line and not line.startswith("#")):
        found = re.fullmatch(r"(PYSEC|GHSA|CVE)-[-\w]+ ([-\w]+): .{20,}", line)
        assert found, line
        assert canonicalize_name(found[2]) in pinned("constraints.txt")


def test_licences_are_listed():
    page = licences_page()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(list(installed())) - 1
    assert "| safetensors |" in page
    assert {row.split()[1] for row in rows if row.endswith("| not stated |")} <= SILENT
