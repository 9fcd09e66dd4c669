"""Loss, divergence and the best token against their definitions; texts one by one."""

from __future__ import annotations

import pytest
import torch

from pipeline.common.events import Events
from pipeline.common.files import read_json, write_json
from pipeline.common.options import RunOptions
from pipeline.evaluate.agreement import agreement_record, window_agreements
from pipeline.evaluate.perplexity import evaluate, window_losses
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.live.loading import load_model
from tests.end_to_end.scenario import prose
from tests.tiny import tiny_model

WINDOWS = torch.arange(4, 64).view(3, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one vocabulary, and two texts."""
    folder = tmp_path_factory.mktemp("agreement")
    dense = tiny_model("llama", folder / "dense", num_hidden_layers=2)
    model = load_model(dense)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(folder / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "other" / name).write_bytes((dense / name).read_bytes())
    (folder / "evaluation.txt").write_text(prose(2, 30), encoding="utf-8")
    (folder / "evaluation-2.txt").write_text(prose(3, 30), encoding="utf-8")
    write_json(folder / "text.json", {"evaluation": [{"name": "first"}, {"name": "second"}]})
    return folder


def test_figures_are_those_of_whole_logits(folders):
    dense, other = load_model(folders / "dense"), load_model(folders / "other")
    found = window_agreements(other, dense, WINDOWS, Events())
    assert [one.read.loss for one in found] == window_losses(other, WINDOWS, Events())
    with torch.no_grad():
        p, q = (model(WINDOWS).logits[:, :-1].double().log_softmax(-1) for model in (dense, other))
    divergence = (p.exp() * (p - q)).sum(-1).mean(-1)
    assert [one.divergence for one in found] == pytest.approx(divergence.tolist(), rel=1e-4)
    assert [one.same_best for one in found] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean(-1).tolist())
    assert agreement_record(found)["divergence"] == pytest.approx(divergence.mean().item(), rel=1e-4)


def test_a_model_agrees_with_itself(folders):
    dense = load_model(folders / "dense")
    for one in window_agreements(dense, dense, WINDOWS, Events()):
        assert one.divergence == pytest.approx(0, abs=1e-6)
        assert one.same_best == 1.0


def test_every_text_has_figures_of_its_own(folders, tmp_path):
    recipe, options = EvaluateSlice(windows=3, window=24), RunOptions(dtype="float32", threads=1)
    for name, dense in (("alone", None), ("beside", folders / "dense")):
        (tmp_path / name).mkdir()
        evaluate(folders / "other", folders, recipe, options, tmp_path / name, Events(), dense)
    alone, beside = (read_json(tmp_path / name / "perplexity.json") for name in ("alone", "beside"))
    assert [text["text"] for text in beside["texts"]] == ["first", "second"]
    assert beside["perplexity"] == beside["texts"][0]["perplexity"] != beside["texts"][1]["perplexity"]
    assert [text["window_losses"] for text in alone["texts"]] == [text["window_losses"] for text in beside["texts"]]
    assert "divergence" not in alone["texts"][0]
    assert all(text["divergence"] > 0 and 0 <= text["same_best"] < 1 for text in beside["texts"])


def test_where_memory_does_not_hold_both_they_are_not_compared(folders, tmp_path):
    said = []
    held = sum(path.stat().st_size for path in (folders / "dense").glob("*.safetensors"))
    options = RunOptions(dtype="float32", threads=1, memory=int(held / 0.35))
    assert options.holds(held)
    assert not options.holds(2 * held)
    evaluate(
        folders / "other",
        folders,
        EvaluateSlice(windows=2, window=24),
        options,
        tmp_path,
        Events(lambda e: said.append(e.text)),
        folders / "dense",
    )
    assert "divergence" not in read_json(tmp_path / "perplexity.json")
    assert any("memory does not hold the dense model beside this one" in text for text in said)
