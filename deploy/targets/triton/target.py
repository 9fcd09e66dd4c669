"""The model repository: `tritonserver` started on it takes text over HTTP and gRPC and gives text back."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

from deploy import pieces
from deploy.recipe import PackageSlice
from deploy.targets.target import ModelToServe, Obstacle, Part, Shipment
from deploy.targets.text import write_rendered
from deploy.targets.triton import backend
from deploy.targets.triton.engine import EngineFacts
from deploy.targets.triton.step import BATCH, write_step_models

TOKENIZER = "tokenizer.json"
FILES = ("model.py", "decoder.py", "replies.py")
QUEUE = 1024
WARM_TEXT, WARM_TOKENS = b"The", 2


class Triton:
    """The text models read the package's ``onnx/`` where it lies; Triton's other backends read their own folder only, so the step model has a copy."""

    name = "triton"
    needs: frozenset[Part] = frozenset({"onnx"})
    brings: tuple[str, ...] = ()
    start = "sh start.sh"

    def obstacle(self, candidate: ModelToServe) -> Obstacle | None:
        if TOKENIZER not in candidate.files:
            return Obstacle("its backend reads tokenizer.json, and the checkpoint has none", "save a fast tokenizer beside the checkpoint")
        return None

    def write(self, shipment: Shipment, recipe: PackageSlice, out: Path) -> None:
        from deploy.targets.triton.gate import gate_text_model  # needs ONNX Runtime, which not everybody has

        gpu = shipment.options.device == "cuda"
        kind = "KIND_GPU" if gpu else "KIND_CPU"
        for place, name, streams in (("models", recipe.served_name, False), ("streaming", f"{recipe.served_name}-stream", True)):
            _write_text_model(out / place / name, shipment, kind, streams)
        engine = EngineFacts.of(shipment.engine)
        write_step_models(shipment.onnx, recipe.served_name, kind, out / "step", engine)
        facts = {"name": recipe.served_name, "start": self.start, "gpu": gpu, "rows": engine.batch if engine else 0}
        for file in ("start.sh", "Dockerfile", "compose.yaml", "README.md"):
            write_rendered(out / file, f"triton.{file}", **facts)
        gate_text_model(shipment.onnx, shipment.options, shipment.events)


def _write_text_model(folder: Path, shipment: Shipment, kind: str, streams: bool) -> None:
    onnx = os.path.relpath(shipment.onnx, folder)
    values = {"name": folder.name, "batch": BATCH, "queue": QUEUE, "kind": kind, "streams": streams, "onnx": Path(onnx).as_posix()}
    write_rendered(folder / "config.pbtxt", "triton.text.pbtxt", **values)
    version, warm = folder / "1", folder / "warmup"
    version.mkdir()
    for file in (*(Path(backend.__path__[0]) / name for name in FILES), Path(pieces.__file__)):
        shutil.copyfile(file, version / file.name)
    if not streams:
        warm.mkdir()
        (warm / "text").write_bytes(struct.pack("<I", len(WARM_TEXT)) + WARM_TEXT)  # Triton's form of a string tensor
        (warm / "tokens").write_bytes(struct.pack("<i", WARM_TOKENS))
