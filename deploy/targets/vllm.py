"""vLLM: the package's own checkpoint folder, natively; nothing of it is copied."""

from __future__ import annotations

from pathlib import Path

from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment, as_consumer
from deploy.targets.text import write_rendered
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import profile_of


class Vllm:
    """Start command and compose file; of profile ``decilm`` vLLM needs the configuration file that lies in the folder."""

    name = "vllm"
    needs: frozenset[Part] = frozenset({"model"})
    brings: tuple[str, ...] = ()
    start = "sh start.sh"

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        return as_consumer("vLLM", candidate)

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        trusts = profile_of(Checkpoint(shipment.model).config) is Profile.DECILM
        for file in ("compose.yaml", "README.md", "start.sh"):
            write_rendered(out / file, f"vllm.{file}", name=recipe.served_name, trusts=trusts)
