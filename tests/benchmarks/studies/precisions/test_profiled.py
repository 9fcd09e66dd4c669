"""What removed weights can save: by the time that they took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.studies.precisions.profiled import allowed_by_time, node_seconds, prompt_profile, shares
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from tests.exporters.models import OPTIONS, stock

SECONDS = {
    "/model/layers.0/mlp/gate_proj/MatMulNBits": 2.0,
    "/model/layers.0/mlp/act_fn/QuickGelu": 1.0,
    "/model/layers.1/mlp/down_proj/MatMul": 3.0,
    "/model/layers.1/attn/GroupQueryAttention": 4.0,
    "/lm_head/MatMul": 8.0,
    "/model/layers.1/final_norm_layernorm/SkipLayerNorm": 2.0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return stock("llama", tmp_path_factory.mktemp("profiled"))


def test_what_is_removed_saves_the_time_that_it_took(checkpoint):
    dense = Checkpoint(checkpoint).geometry
    first, second = dense.blocks
    pruned = replace(dense, blocks=(replace(first, ffn=first.ffn // 2), replace(second, kv_groups=second.kv_groups // 2)))
    # 1.5 of the first FFN and 2 of the second attention; of the head, seven positions of eight.
    assert allowed_by_time(SECONDS, dense, pruned, 8) == pytest.approx(20 / (20 - 1.5 - 2 - 7))
    assert allowed_by_time(SECONDS, dense, dense, 1) == 1.0
    assert shares(SECONDS) == pytest.approx({"ffn": 0.3, "attention": 0.2, "head": 0.4, "rest": 0.1})


def test_fewer_blocks_are_not_counted(checkpoint):
    dense = Checkpoint(checkpoint).geometry
    with pytest.raises(TrimlineError, match="Only FFN channels and heads"):
        allowed_by_time(SECONDS, dense, replace(dense, blocks=dense.blocks[:1]), 8)


def test_the_first_passes_do_not_count():
    events = [{"cat": "Node", "name": "/a_kernel_time", "dur": dur} for dur in (900, 800, 1, 2, 9)]
    events += [{"cat": "Session", "name": "model_run", "dur": 5}, {"cat": "Node", "name": "/a_fence_before", "dur": 7}]
    assert node_seconds(events) == {"/a": 2e-6}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_real_profile_names_every_part(precision, checkpoint, tmp_path):
    pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    export(checkpoint, ExportSlice(lowering="fused", precision=precision, logits="all"), OPTIONS, tmp_path, Events())
    seconds = prompt_profile(tmp_path, 16, 128, 1)
    assert min(shares(seconds).values()) > 0
    assert sum("GroupQueryAttention" in name for name in seconds) == 2
