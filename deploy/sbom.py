"""The software that made a package, as a CycloneDX bill of materials: every distribution with version, licence and what it needs.

The same environment gives the same bytes: the serial number and the time, which the format leaves to taste, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.common.files import write_json

SBOM = "sbom.cdx.json"
ROOT = "trimline"
# Of what may be installed beside the core: everything that can run or make what is in a package.
EXTRAS = ("cpu", "gpu", "openvino", "tensorrt", "rtx", "recover", "serve")
UNKNOWN = "not stated"
CLASSIFIER = "License :: "
LONGEST = 100  # characters; some distributions write a whole licence text where its name belongs


def write_sbom(path: Path) -> None:
    """Writes the bill of materials of this environment."""
    write_json(path, bill_of_materials())


def bill_of_materials() -> dict[str, Any]:
    """CycloneDX 1.6 as plain values; Trimline is what it is about, the rest its components."""
    found = dict(installed())
    components = {name: _component(name, dist) for name, dist in found.items()}
    bom = Bom(components=[component for name, component in components.items() if name != ROOT])
    bom.metadata.component = components[ROOT]
    for name, dist in found.items():
        needed = [components[other] for other in sorted(_needed(dist, EXTRAS if name == ROOT else ())) if other in components]
        bom.register_dependency(components[name], needed)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document.pop("serialNumber", None)
    document["metadata"].pop("timestamp", None)
    return document


def installed() -> Iterator[tuple[str, Distribution]]:
    """Trimline and every distribution that it needs, directly or not, as far as it is installed; by name, in order."""
    found: dict[str, Distribution] = {}
    waiting = [ROOT]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of an extra that is not here
            continue
        waiting += _needed(found[name], EXTRAS if name == ROOT else ())
    yield from sorted(found.items())


def licence_of(dist: Distribution) -> str:
    """What a distribution says about its licence, as briefly as it says it anywhere."""
    stated = dist.metadata.json
    given = str(stated.get("license_expression") or stated.get("license") or "").strip()
    if given and len(given) <= LONGEST and "\n" not in given and given.upper() != "UNKNOWN":
        return given
    kinds = [str(kind).rpartition(" :: ")[2] for kind in stated.get("classifier", []) if str(kind).startswith(CLASSIFIER)]
    return " and ".join(kinds) or UNKNOWN


def _component(name: str, dist: Distribution) -> Component:
    url, stated = PackageURL("pypi", None, name, dist.version), licence_of(dist)
    licences = [] if stated == UNKNOWN else [LicenseFactory().make_from_string(stated)]
    return Component(type=ComponentType.LIBRARY, name=name, version=dist.version, bom_ref=str(url), purl=url, licenses=licences)


def _needed(dist: Distribution, extras: tuple[str, ...]) -> set[str]:
    """Names of what a distribution requires here; markers of other systems and of other extras do not count."""
    wanted = map(Requirement, dist.requires or ())
    return {
        canonicalize_name(requirement.name)
        for requirement in wanted
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    }


def licences_page() -> str:
    """A table of licences as Markdown."""
    rows = "".join(f"| {name} | {dist.version} | {licence_of(dist)} |\n" for name, dist in installed() if name != ROOT)
    return (
        "# Licences of what Trimline is built on\n\nAs the distributions themselves state them, in the environment of `constraints.txt`; "
        "`make licences` writes this page.\nEvery package carries the same list as `sbom.cdx.json`, of the environment that made it.\n\n"
        f"| distribution | version | licence |\n|---|---|---|\n{rows}"
    )


if __name__ == "__main__":
    print(licences_page(), end="")
