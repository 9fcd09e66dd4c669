"""What a package is made of: a tiny model with uneven blocks, once for every test of this room."""

from __future__ import annotations

import pytest

from deploy.package import PackageParts
from exporters.recipe import ExportSlice
from pipeline.recipe import Profile
from tests.deploy.parts import OPTIONS, made_parts
from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> PackageParts:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai, which builds the fused graph, is not installed")
    root = tmp_path_factory.mktemp("parts")
    dense = tiny_model("llama", root / "dense")
    (dense / "LICENSE").write_text("invented licence\n")
    return made_parts(root, dense, (64, 32, 96, 16), Profile.DECILM, ExportSlice(), OPTIONS)
