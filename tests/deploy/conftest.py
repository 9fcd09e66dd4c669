"""What a package is made of: a tiny model with uneven blocks, once for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.package import PackageParts
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.common.events import Events
from tests.deploy.parts import OPTIONS, made_parts
from tests.exporters.models import uneven
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> PackageParts:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai, which builds the fused graph, is not installed")
    root = tmp_path_factory.mktemp("parts")
    dense = tiny_model("llama", root / "dense")
    (dense / "LICENSE").write_text("invented licence\n")
    return made_parts(root, dense, (64, 32, 96, 16), Profile.DECILM, ExportSlice(), OPTIONS)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same checkpoint, with one block without attention, in both lowerings."""
    root = tmp_path_factory.mktemp("graphs")
    folder = uneven("llama", root)
    for lowering in ("fused", "portable"):
        (root / lowering).mkdir()
        export(folder, ExportSlice(lowering=lowering), OPTIONS, root / lowering, Events())
    return {name: root / name for name in ("fused", "portable")}
