"""llama.cpp on one machine: one GGUF file, served through llama-cpp-python's OpenAI-compatible server."""

from __future__ import annotations

import tempfile
from pathlib import Path

from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment, as_consumer
from deploy.targets.text import write_rendered
from exporters.folder import GATE
from exporters.gguf.files import MODEL
from exporters.gguf.metadata import context_length
from exporters.gguf.stage import export_gguf
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.rebuild.gguf_form import gguf_form

TOKENIZER = "tokenizer.json"
CONTEXT = 8192  # tokens that the server keeps room for at most, unless it is told otherwise: room costs memory before it is used


class LlamaCpp:
    """Writes model.gguf, gated: in fp16, or as the recipe wants it."""

    name = "llama.cpp"
    needs: frozenset[Part] = frozenset({"model"})
    brings: tuple[str, ...] = ()
    start = "sh start.sh"

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        if TOKENIZER not in candidate.files:
            return Obstacle(f"it takes text, and the model has no {TOKENIZER}", "save its tokenizer into the folder first")
        return as_consumer("llama.cpp", candidate)

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        with tempfile.TemporaryDirectory(dir=out, prefix=".gguf-") as scratch:
            folder = Path(scratch) / "export"
            folder.mkdir()
            export_gguf(shipment.model, recipe.gguf, shipment.options, folder, shipment.events)
            (folder / MODEL).replace(out / MODEL)
            gate = read_json(folder / GATE)
        source = Checkpoint(shipment.model)
        most = context_length(gguf_form(source.geometry, source.config), Events())
        facts = {"name": recipe.served_name, "file": MODEL, "tensors": gate["tensors"], "ran": gate["llama.cpp"]}
        facts |= {"kind": recipe.gguf.quantise or recipe.gguf.precision, "whole": recipe.gguf.precision}
        for file in ("Dockerfile", "compose.yaml", "README.md", "start.sh"):
            write_rendered(out / file, f"llama_cpp.{file}", **facts, context=min(most, CONTEXT), most=most)
