"""Parts of a package from a tiny or a real model, through the real rebuild and export stages."""

from __future__ import annotations

from pathlib import Path

from deploy.package import PackageParts
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import RECORD
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan, Step
from pipeline.plan.selection import Selection
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from tests.trimline.reporting.sample_report import sample
from trimline.reporting import write_report

RECIPE = "name: test\nmodel:\n  source: someone/some-model\n"
OPTIONS = RunOptions(threads=1)


def made_parts(root: Path, dense: Path, ffn: tuple[int, ...], profile: Profile, recipe: ExportSlice, options: RunOptions) -> PackageParts:
    """The first ``ffn[i]`` channels of every block's FFN stay."""
    for name in ("plan", "model", "onnx", "report"):
        (root / name).mkdir(parents=True)
    checkpoint = Checkpoint(dense)
    everything = Selection.everything(checkpoint.geometry)
    selection = Selection(everything.blocks, tuple(tuple(range(kept)) for kept in ffn), everything.kv_groups)
    Plan(checkpoint.geometry.family, selection, (Step("by hand on ffn", {}, {}, {}),)).write(root / "plan")
    rebuild(dense, root / "plan", RebuildSlice(profile=profile), options, root / "model", Events())
    export(root / "model", recipe, options, root / "onnx", Events())
    for name in ("model", "onnx"):
        (root / name / RECORD).write_text("{}")  # as the store leaves it
    write_report(sample(), root / "report")
    return PackageParts(
        root / "model", root / "onnx", root / "plan", root / "report", RECIPE, "trimline run r.yaml --output runs/run", options
    )
