"""The whole pruned SmolLM2, 2:4, through the portable lowering into an engine: minutes, mostly torch's exporter."""

from __future__ import annotations

import json

import pytest

from exporters.onnx.running.shapes import EngineRequest
from exporters.onnx.sparsity import check_two_four, weight_patterns
from exporters.recipe import BuildSlice
from exporters.tensorrt.stage import build
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.plan.plan import Plan
from pipeline.plan.selection import Selection
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from tests.exporters.tensorrt.conftest import portable_folder, two_four


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_decoder_is_parsed_and_built(smollm2, tmp_path, rtx):
    options, geometry = RunOptions(), Checkpoint(smollm2).geometry
    everything = Selection.everything(geometry)
    # Uneven, and one block without attention: what is pruned does not matter to a parser.
    ffn = tuple(tuple(range(1536 - 64 * (block % 8))) for block in range(len(geometry.blocks)))
    groups = tuple(() if block == 7 else kept for block, kept in enumerate(everything.kv_groups))
    for name in ("plan", "model", "engine"):
        (tmp_path / name).mkdir()
    Plan(geometry.family, Selection(everything.blocks, ffn, groups), ()).write(tmp_path / "plan")
    rebuild(smollm2, tmp_path / "plan", RebuildSlice(profile=Profile.FREE), options, tmp_path / "model", Events())
    graph = portable_folder(two_four(tmp_path / "model"), tmp_path / "onnx")
    patterns = list(weight_patterns(graph / "model.onnx"))
    assert check_two_four(patterns)["weights"] == 30 * 7 - 4
    recipe = BuildSlice(builder="tensorrt_rtx", sparsity="require", compute_capabilities=("8.6",))
    build(graph, recipe, [EngineRequest(512), EngineRequest(128, 17)], options, tmp_path / "engine", Events())
    record = json.loads((tmp_path / "engine" / "build.json").read_text())
    assert record["layers"] > 5000
    assert record["bytes"] > 300_000_000
    assert record["flags"] == ["SPARSE_WEIGHTS"]
