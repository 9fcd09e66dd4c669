"""The harness on a graph: the same answers as the checkpoint's, likelihoods and text, in either lowering."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from exporters.onnx.running.session import OnnxDecoder
from exporters.onnx.stage import export
from exporters.onnx.tasks import harness
from exporters.onnx.tasks.harness import examine_graph
from exporters.recipe import ExportSlice
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.harness.scores import RESULT
from pipeline.evaluate.harness.stage import examine
from pipeline.evaluate.recipe import LmEvalSlice
from pipeline.live.loading import load_model, load_tokenizer
from tests.exporters.models import OPTIONS, stock, uneven
from tests.pipeline.evaluate.harness.test_examine import own  # noqa: F401 - a fixture

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
BAR = 1e-3  # of a logit, in the export's gate; a log-likelihood may be off by twice that per token
PROMPTS = ["Not hot but", "A first line of text, longer than the other", "And"]


@pytest.fixture(scope="module", params=["fused", "portable"])
def both(request, tmp_path_factory):
    """(checkpoint, its graph with the logits of the last position)."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "fused":
        pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model, out = (stock("llama", folder) if request.param == "fused" else uneven("llama", folder)), folder / "onnx"
    out.mkdir()
    export(model, ExportSlice(lowering=request.param), OPTIONS, out, Events())
    assert OnnxDecoder(out, 1).last_logits_only
    return model, out


def request_of(*arguments):
    return SimpleNamespace(args=arguments)


def models(both):
    from lm_eval.models.huggingface import HFLM

    from exporters.onnx.tasks.graph_model import GraphLM

    checkpoint = HFLM(pretrained=load_model(both[0]), tokenizer=load_tokenizer(both[0]), backend="causal", max_length=256, batch_size=2)
    return checkpoint, GraphLM(both[1], OnnxDecoder(both[1], 1, every_position=True), batch=2)


def test_the_tasks_come_out_as_the_checkpoints(both, own, tmp_path):  # noqa: F811
    recipe, found = LmEvalSlice(tasks=(str(own),), batch=3), []
    for name, stage, folder in (("checkpoint", examine, both[0]), ("graph", examine_graph, both[1])):
        (tmp_path / name).mkdir()
        stage(folder, recipe, OPTIONS, tmp_path / name, Events())
        found.append(json.loads((tmp_path / name / RESULT).read_text()))
    assert found[1]["gate"]["passed"]
    for first, second in zip(found[0]["tasks"], found[1]["tasks"], strict=True):
        assert (first["task"], first["metric"], first["documents"]) == (second["task"], second["metric"], second["documents"])
        assert second["value"] == pytest.approx(first["value"], rel=1e-4)
    assert {row["task"] for row in found[0]["tasks"]} == {"choice", "own"}


def test_likelihoods_are_within_the_exports_bar(both):
    checkpoint, graph = models(both)
    pairs = [request_of(prompt, f" {word}") for prompt in PROMPTS for word in ("cold", "something else")]
    for first, second, pair in zip(checkpoint.loglikelihood(pairs), graph.loglikelihood(pairs), pairs, strict=True):
        assert second[0] == pytest.approx(first[0], abs=2 * BAR * len(pair.args[1]))
        assert first[1] == second[1]
    texts = [request_of(text * 9) for text in PROMPTS]  # longer than the context: several windows
    for first, second, text in zip(checkpoint.loglikelihood_rolling(texts), graph.loglikelihood_rolling(texts), texts, strict=True):
        assert second == pytest.approx(first, abs=2 * BAR * len(text.args[0]))


def test_text_is_the_checkpoints(both):
    checkpoint, graph = models(both)
    free = [request_of(prompt, {"until": ["\n\n\n"], "max_gen_toks": 12}) for prompt in PROMPTS]
    said = checkpoint.generate_until(free)
    assert graph.generate_until(free) == said
    stop = said[0][2]
    stopped = [request_of(prompt, {"until": [stop], "max_gen_toks": 12}) for prompt in PROMPTS]
    assert graph.generate_until(stopped) == checkpoint.generate_until(stopped) == [text.split(stop)[0] for text in said]


def test_a_row_that_has_ended_says_nothing_more(both):
    _, graph = models(both)
    free = [request_of(prompt, {"until": ["\n\n\n"], "max_gen_toks": 8}) for prompt in PROMPTS[:2]]
    said = graph.generate_until(free)
    graph._ends = torch.tensor(graph.tok_encode(said[0][1]))  # as if that letter ended a text
    assert graph.generate_until(free)[0] == said[0][: said[0].index(said[0][1]) + 1]


def test_drawn_text_is_refused(both):
    with pytest.raises(TrimlineError, match="wants sampled text"):
        models(both)[1].generate_until([request_of("A", {"do_sample": True, "temperature": 0.7, "max_gen_toks": 2})])


def test_a_view_that_says_something_else_is_not_used(both, own, tmp_path, monkeypatch):  # noqa: F811
    class Off(OnnxDecoder):
        def logits(self, ids):
            found = super().logits(ids)
            return found if self.last_logits_only else found[..., ::-1].copy()

    monkeypatch.setattr(harness, "OnnxDecoder", Off)
    with pytest.raises(GateError, match="with the logits of all positions"):
        examine_graph(both[1], LmEvalSlice(tasks=(str(own),)), OPTIONS, tmp_path, Events())
    assert list(tmp_path.iterdir()) == []
