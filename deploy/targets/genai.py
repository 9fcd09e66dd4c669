"""onnxruntime-genai on one machine: `trimline serve`, OpenAI-compatible, in a container or without one."""

from __future__ import annotations

from pathlib import Path

from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment, as_consumer
from deploy.targets.text import write_rendered


class Genai:
    """Serves the package's ONNX folder; nothing of it is copied, the container mounts the package."""

    name = "onnxruntime-genai"
    needs: frozenset[Part] = frozenset({"onnx"})
    brings: tuple[str, ...] = ()
    start = "sh start.sh"

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        return as_consumer("onnxruntime-genai", candidate)

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        for file in ("Dockerfile", "compose.yaml", "README.md", "start.sh"):
            write_rendered(out / file, f"genai.{file}", name=recipe.served_name, start=self.start)
