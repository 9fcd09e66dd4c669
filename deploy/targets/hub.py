"""A model hub: a folder whose top is the checkpoint, so that ``from_pretrained`` and an upload take it as it is."""

from __future__ import annotations

from pathlib import Path

from deploy.card import hub_card
from deploy.folder import CARD, HTML, MARKDOWN, RECIPE
from deploy.placing import copy, link_or_copy
from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment
from deploy.targets.text import write_text
from exporters.gguf.files import MODEL
from pipeline.plan.folder import PLAN


class Hub:
    """Checkpoint, tokenizer, modelling file and card at the top; ONNX and GGUF in folders beside."""

    name = "hub"
    needs: frozenset[Part] = frozenset({"model"})
    brings: tuple[str, ...] = ()
    start = "hf upload OWNER/NAME ."

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        return None  # transformers loads every profile

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        for path in sorted(shipment.model.iterdir()):
            link_or_copy(path, out / path.name)
        for name in (PLAN, RECIPE, HTML, MARKDOWN):
            copy(shipment.folder / name, out / name)
        write_text(out / CARD, hub_card(shipment.card))
        if shipment.onnx.is_dir():
            (out / "onnx").mkdir()
            for path in sorted(shipment.onnx.iterdir()):
                copy(path, out / "onnx" / path.name)
        gguf = out.parent / "llama.cpp" / MODEL  # written before: this target is the last of the registry
        if gguf.is_file():
            (out / "gguf").mkdir()
            copy(gguf, out / "gguf" / MODEL)
