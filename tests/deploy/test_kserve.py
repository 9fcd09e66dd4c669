"""Manifests for Kubernetes and KServe: complete, consistent, and about the folders that lie beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.package import package
from deploy.recipe import PackageSlice
from pipeline.common.events import Events

NAME = "small-model"
# Where a manifest keeps its containers, by kind.
CONTAINERS = {
    "ServingRuntime": ("spec", "containers"),
    "InferenceService": ("spec", "predictor", "containers"),
    "Deployment": ("spec", "template", "spec", "containers"),
}
REQUIRED = {"ServingRuntime": "serving.kserve.io/v1alpha1", "InferenceService": "serving.kserve.io/v1beta1", "Deployment": "apps/v1"}
REQUIRED |= {"Service": "v1"}
# Kubernetes' rules for names and for quantities.
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"\d+(m|Mi|Gi)?")


@pytest.fixture(scope="module")
def shipped(parts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shipped")
    package(parts, PackageSlice(targets=("kserve",), served_name=NAME), out, Events())
    return out


def documents(shipped: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted((shipped / "serve" / "kserve").glob("*.yaml"))}


def inside(document: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        document = document.get(part, {})
    return document


def containers(shipped: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(file, document, container)."""
    found = []
    for file, manifests in documents(shipped).items():
        for manifest in manifests:
            found += [(file, manifest, entry) for entry in inside(manifest, CONTAINERS.get(manifest["kind"], ("nothing",))) or []]
    return found


def test_what_it_runs_is_written_too(shipped):
    assert {path.name for path in (shipped / "serve").iterdir()} == {"kserve", "triton", "onnxruntime-genai"}
    assert "`serve/triton/`" in (shipped / "README.md").read_text()


def test_every_manifest_names_its_kind_version_and_itself(shipped):
    kinds = {file: [manifest["kind"] for manifest in found] for file, found in documents(shipped).items()}
    assert kinds == {
        "kubernetes-openai.yaml": ["Deployment", "Service"],
        "kubernetes-triton.yaml": ["Deployment", "Service"],
        "openai.yaml": ["InferenceService"],
        "triton.yaml": ["ServingRuntime", "InferenceService"],
    }
    for manifests in documents(shipped).values():
        for manifest in manifests:
            assert manifest["apiVersion"] == REQUIRED[manifest["kind"]]
            assert LABEL.fullmatch(manifest["metadata"]["name"])
            assert manifest["metadata"]["name"].startswith(NAME)


def test_containers_have_what_kubernetes_demands(shipped):
    found = containers(shipped)
    assert len(found) == 4
    for file, _, container in found:
        assert LABEL.fullmatch(container["name"]), file
        assert container["image"].startswith("trimline-")
        assert all(isinstance(argument, str) for argument in container["args"]), file
        assert all(isinstance(port["containerPort"], int) for port in container["ports"])
        assert all(QUANTITY.fullmatch(str(value)) for value in container["resources"]["requests"].values())
        names = {port["name"] for port in container["ports"] if "name" in port} | {port["containerPort"] for port in container["ports"]}
        probes = [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe") if probe in container]
        assert probes
        if container["image"].startswith("trimline-serve"):
            assert container["livenessProbe"]["httpGet"]["path"] == "/health/live", file
        assert {probe["httpGet"]["port"] for probe in probes} <= names
        for environment in container.get("env", []):
            assert isinstance(environment["value"], str)


def test_mounts_are_volumes_and_services_find_their_pods(shipped):
    for file, manifest, container in containers(shipped):
        spec = manifest["spec"]["template"]["spec"] if manifest["kind"] == "Deployment" else manifest["spec"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= {volume["name"] for volume in spec.get("volumes", [])}, (
            file
        )
    for file in ("kubernetes-triton.yaml", "kubernetes-openai.yaml"):
        deployment, service = documents(shipped)[file]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert service["spec"]["selector"].items() <= labels.items()
        ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_kserves_own_names_fit_together(shipped):
    runtime, service = documents(shipped)["triton.yaml"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["storageUri"] == f"pvc://models/{NAME}"
    custom = documents(shipped)["openai.yaml"][0]["spec"]["predictor"]["containers"][0]
    assert custom["name"] == runtime["spec"]["containers"][0]["name"] == "kserve-container"
    assert custom["env"] == [{"name": "STORAGE_URI", "value": model["storageUri"]}]


def test_paths_in_containers_are_folders_of_the_package(shipped):
    named = set()
    for _, _, container in containers(shipped):
        for argument in (*container.get("command", []), *container["args"]):
            place = re.search(r"/(?:mnt/models|package)/([\w/.-]+)", argument)
            named |= {place.group(1)} if place else set()
    assert named == {"serve/triton/start.sh", "onnx"}
    assert all((shipped / name).exists() for name in named)


def test_memory_covers_the_weights(shipped):
    weights = sum(path.stat().st_size for path in (shipped / "onnx").iterdir())
    for _, _, container in containers(shipped):
        assert int(container["resources"]["requests"]["memory"].removesuffix("Gi")) * 2**30 >= weights + 2 * 2**30
