"""One block at a time computes what the whole model computes: the same plan, bit for bit, for every method and family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.evaluate.perplexity import evaluate
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import load_model
from pipeline.live.paging import open_model, open_paged
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import prune
from pipeline.rebuild import stage
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild
from tests.pipeline.prune.test_measure import STEPS, TOKENS, files
from tests.quick import quick_alone
from tests.tiny import TINY_FAMILIES, tiny_model

WHOLE = RunOptions(dtype="float32", threads=1)
PAGED = replace(WHOLE, memory=1)
MORE = {
    "sparsegpt": {"method": "sparsegpt", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"},
    "gblm, weights": {"method": "gblm", "budget": {"weight": {"remove": 0.5}}},
    "llm_surgeon, weights": {"method": "llm_surgeon", "budget": {"weight": {"remove": 0.5}}, "shots": 2},
    "groups": {"method": "cfsp_extended", "budget": {"kv_group": {"keep": 1}}, "compensation": "least_squares"},
    "laco": {"method": "laco", "budget": {"layer": {"keep": 3}}, "options": {"layers": 2, "interval": 1}},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("dense"))


def plan(folder, steps, options, out):
    out.mkdir()
    prune(folder, out, PruneSlice.model_validate({"calibration": {"token_ids": TOKENS}, "steps": steps}), options, out, Events())
    return files(out)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_logits_are_those_of_the_whole_model(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model", num_hidden_layers=3)
    tokens = torch.tensor(TOKENS[:2])
    whole = load_model(folder, dtype=torch.float32)
    paged, paging = open_paged(folder, PAGED, torch.float32)
    blocks = blocks_of(paged, Checkpoint(folder).geometry.family)
    with torch.inference_mode():
        assert torch.equal(whole(tokens, use_cache=False).logits, paged(tokens, use_cache=False).logits)
    held = [number for number, block in enumerate(blocks) if any(p.device.type != "meta" for p in block.parameters())]
    assert held == [2]
    paging.leave()
    assert all(parameter.device.type == "meta" for parameter in blocks.parameters())
    assert {name: p.shape for name, p in paged.named_parameters()} == {name: p.shape for name, p in whole.named_parameters()}


@pytest.mark.parametrize("name", quick_alone((STEPS | MORE), [name for name in (STEPS | MORE) if name != "llm_surgeon, weights"]))
def test_every_method_decides_the_same_bit_for_bit(name, dense, tmp_path):
    step = (STEPS | MORE)[name]
    assert plan(dense, [step], PAGED, tmp_path / "paged") == plan(dense, [step], WHOLE, tmp_path / "whole")


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_steps_after_one_another_see_what_was_done_before(family, tmp_path):
    """Blocks that went, biases that came, channels and weights that are zero: all of it is there again when a block is read."""
    folder = tiny_model(family, tmp_path / "model")
    steps = [
        {"method": "block_influence", "budget": {"layer": {"keep": 3}}},
        STEPS["flap"],
        STEPS["cfsp, least squares"],
        MORE["groups"],
        MORE["sparsegpt"] | {"pattern": "unstructured"},
    ]
    before = files(folder)
    assert plan(folder, steps, PAGED, tmp_path / "paged") == plan(folder, steps, WHOLE, tmp_path / "whole")
    assert files(folder) == before, "a mapped tensor was changed in its file"


def test_lower_precision_than_the_weights(tmp_path):
    """A bf16 checkpoint measured in fp32: what was solved for is rounded as the checkpoint will hold it, in both forms."""
    folder = tiny_model("llama", tmp_path / "model")
    load_model(folder, dtype=torch.bfloat16).save_pretrained(folder)
    steps = [STEPS["cfsp, sequential"], STEPS["trimline"]]
    assert plan(folder, steps, PAGED, tmp_path / "paged") == plan(folder, steps, WHOLE, tmp_path / "whole")


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_rebuilding_and_evaluating_give_the_same_bytes(family, tmp_path):
    folder = tiny_model(family, tmp_path / "model")
    plan(folder, [STEPS["cfsp, least squares"], MORE["groups"]], WHOLE, tmp_path / "plan")
    (tmp_path / "evaluation.txt").write_text("the quick brown fox jumps over the lazy dog " * 30)
    made = {}
    for name, options in {"whole": WHOLE, "paged": PAGED}.items():
        for folder_of in ("rebuilt", "read"):
            (tmp_path / name / folder_of).mkdir(parents=True)
        rebuilt = tmp_path / name / "rebuilt"
        rebuild(folder, tmp_path / "plan", RebuildSlice(profile=Profile.FREE), options, rebuilt, Events())
        evaluate(rebuilt, tmp_path, EvaluateSlice(windows=4, window=128), options, tmp_path / name / "read", Events())
        made[name] = files(rebuilt) | files(tmp_path / name / "read")
    assert made["whole"] == made["paged"]


def test_the_gate_finds_a_wrong_tensor_block_by_block(dense, tmp_path, monkeypatch):
    plan(dense, [STEPS["cfsp"]], WHOLE, tmp_path / "plan")
    cut = stage.Cut
    monkeypatch.setattr(
        stage, "Cut", lambda *given: {name: t * 1.01 if name.endswith("0.mlp.up_proj.weight") else t for name, t in cut(*given).items()}
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(GateError, match="does not compute what"):
        rebuild(dense, tmp_path / "plan", RebuildSlice(profile=Profile.FREE), PAGED, tmp_path / "out", Events())


def test_the_budget_decides(dense):
    size = 4 * Checkpoint(dense).geometry.total_parameters()
    assert open_model(dense, replace(WHOLE, memory=4 * size), torch.float32)[1] is None
    assert open_model(dense, replace(WHOLE, memory=size), torch.float32)[1] is not None


def test_a_config_that_lies_about_shapes(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 96', '"intermediate_size": 128'))
    with pytest.raises(TrimlineError, match=r"mlp.*has shape .*96.* its config says .*128"):
        plan(folder, [STEPS["cfsp"]], PAGED, tmp_path / "plan")
