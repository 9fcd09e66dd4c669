"""A small pruned decoder as a portable ONNX folder: blocks of uneven widths, one without attention, one without FFN, all 2:4."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from exporters.onnx.files import save_graph
from exporters.onnx.lowering.portable import lower_portable
from exporters.recipe import Precision
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.prune.model.masks import n_m
from pipeline.sources.companions import copy_companions
from tests.exporters.models import uneven


def two_four(checkpoint: Path) -> Path:
    """Zeroes the two smallest of every four inputs of every projection, in place."""
    weights = load_file(checkpoint / "model.safetensors")
    for name, weight in weights.items():
        if "_proj" in name and weight.dim() == 2:
            weights[name] = weight.masked_fill(n_m(weight.abs(), 2, 4), 0.0).contiguous()
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def portable_folder(checkpoint: Path, out: Path, precision: Precision = "fp32") -> Path:
    """What the export stage writes, without its gate, which is tested elsewhere and takes most of the time."""
    out.mkdir()
    source = Checkpoint(checkpoint)
    save_graph(lower_portable(source, precision, Events()), out, "portable")
    copy_companions(source.folder, out, Events())
    write_json(out / "checkpoint_config.json", source.config)
    write_json(out / "export.json", {"lowering": "portable", "precision": precision, "logits": "all"})
    return out


@pytest.fixture(scope="session")
def sparse_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_four(uneven("llama", tmp_path_factory.mktemp("sparse")))


@pytest.fixture(scope="session")
def sparse_onnx(sparse_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return portable_folder(sparse_checkpoint, tmp_path_factory.mktemp("portable") / "onnx")


@pytest.fixture(scope="session")
def half_onnx(sparse_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in fp16, which is what `make gpu` exports."""
    return portable_folder(sparse_checkpoint, tmp_path_factory.mktemp("half") / "onnx", "fp16")


@pytest.fixture
def rtx() -> None:
    """Skips where TensorRT-RTX cannot build."""
    for name in ("tensorrt_rtx", "polygraphy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: make test installs it where its wheel exists")
