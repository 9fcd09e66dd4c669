"""A tiny model with uneven blocks, through the real rebuild and export stages, for every test of this room."""

from __future__ import annotations

import pytest

from deploy.package import PackageParts
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.artefact import RECORD
from pipeline.checkpoint import Checkpoint
from pipeline.events import Events
from pipeline.options import RunOptions
from pipeline.plan import Plan, Selection, Step
from pipeline.rebuild.stage import rebuild
from pipeline.recipe import Profile, RebuildSlice
from tests.tiny import tiny_model
from tests.trimline.sample_report import sample
from trimline.reporting import write_report

RECIPE = "name: test\nmodel:\n  source: someone/some-model\n"
OPTIONS = RunOptions(threads=1)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> PackageParts:
    """What a package is made of."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai, which builds the fused graph, is not installed")
    root = tmp_path_factory.mktemp("parts")
    for name in ("plan", "model", "onnx", "report"):
        (root / name).mkdir()
    dense = tiny_model("llama", root / "dense")
    (dense / "LICENSE").write_text("invented licence\n")
    checkpoint = Checkpoint(dense)
    everything = Selection.everything(checkpoint.geometry)
    ffn = (tuple(range(64)), tuple(range(32)), tuple(range(96)), tuple(range(16)))
    selection = Selection(everything.blocks, ffn, everything.kv_groups)
    Plan(checkpoint.geometry.family, selection, (Step("by hand on ffn", {}, {}, {}),)).write(root / "plan")
    rebuild(dense, root / "plan", RebuildSlice(profile=Profile.DECILM), OPTIONS, root / "model", Events())
    export(root / "model", ExportSlice(), OPTIONS, root / "onnx", Events())
    for name in ("model", "onnx"):
        (root / name / RECORD).write_text("{}")  # as the store leaves it
    write_report(sample(), root / "report")
    return PackageParts(
        root / "model", root / "onnx", root / "plan", root / "report", RECIPE, "trimline run r.yaml --output runs/run", OPTIONS
    )
