"""A checkpoint as llama.cpp's folder, quantised by llama.cpp."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.runtimes.names import GGUF
from exporters.folder import CONFIG, EXPORT
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.files import write_json


def llama_folder(gguf: Path, checkpoint: Path, out: Path) -> None:
    """A GGUF file of a checkpoint's shape, in a folder that the benchmark opens."""
    shutil.copyfile(gguf, out / GGUF)
    write_json(out / CONFIG, Checkpoint(checkpoint).config)
    write_json(out / EXPORT, {"lowering": "llama.cpp", "precision": "int4", "logits": "last"})
