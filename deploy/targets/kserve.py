"""Kubernetes, with KServe and without it: manifests that run the folders of the Triton and the GenAI target."""

from __future__ import annotations

import math
from pathlib import Path

from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment
from deploy.targets.text import write_rendered

FILES = ("triton.yaml", "openai.yaml", "kubernetes-triton.yaml", "kubernetes-openai.yaml", "README.md")
IMAGES = {"triton": "trimline-triton:0.1", "openai": "trimline-serve:0.1"}
SPARE_GIB = 2


class KServe:
    """Written beside the two targets whose images its manifests run; what they cannot serve, they refuse."""

    name = "kserve"
    needs: frozenset[Part] = frozenset({"onnx"})
    brings: tuple[str, ...] = ("triton", "onnxruntime-genai")
    start = "kubectl apply -f triton.yaml"

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        return None

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        size = sum(path.stat().st_size for path in shipment.onnx.iterdir() if path.is_file())
        values = {
            "name": recipe.served_name,
            "images": IMAGES,
            "memory": f"{math.ceil(size / 2**30) + SPARE_GIB}Gi",
            "gpu": shipment.options.device == "cuda",
            "start": self.start,
        }
        for file in FILES:
            write_rendered(out / file, f"kserve.{file}", **values)
