"""Losses against their definitions; blocks that belong together are the ones compared."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.architecture.families import Sublayer, family_named
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import load_model
from pipeline.recover.distillation import BlockOutputs, Lesson, prediction_divergence, state_distance
from tests.tiny import TINY_FAMILIES, tiny_model

TOKENS = torch.arange(4, 36).view(2, 16)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_is_the_sum_over_the_vocabulary(temperature):
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    brute = 0.0
    for row in range(2):
        for position in range(3):
            p = [math.exp(v / temperature) for v in teacher[row, position].tolist()]
            q = [math.exp(v / temperature) for v in student[row, position].tolist()]
            brute += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    found = prediction_divergence(student, teacher, temperature)
    assert found.item() == pytest.approx(brute / 6 * temperature**2, rel=1e-5)


def test_divergence_of_a_model_from_itself_is_zero_and_flat():
    logits = torch.randn(4, 7, requires_grad=True)
    loss = prediction_divergence(logits, logits.detach(), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)


def test_distance_is_relative_to_every_token():
    student, teacher = [torch.randn(2, 3, 4) for _ in range(2)], [torch.randn(2, 3, 4) * 10**i for i in range(2)]
    brute = [
        sum((s - t) ** 2 for s, t in zip(a, b, strict=True)) / sum(t**2 for t in b)
        for ours, theirs in zip(student, teacher, strict=True)
        for a, b in zip(ours.view(-1, 4).tolist(), theirs.view(-1, 4).tolist(), strict=True)
    ]
    assert state_distance(student, teacher).item() == pytest.approx(sum(brute) / len(brute), rel=1e-5)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_dense_model_teaches_itself_nothing(family, tmp_path):
    folder = tiny_model(family, tmp_path)
    teacher, student = load_model(folder), load_model(folder)
    described = family_named(family)
    watched = [BlockOutputs.of(list(blocks_of(model, described))) for model in (teacher, student)]
    lesson = Lesson(teacher, 1.0, 0.5, *watched)
    assert lesson.loss(student, TOKENS).item() == pytest.approx(0, abs=1e-6)
    assert [state.shape for state in watched[0].states] == [(2, 16, 64)] * 4
    with torch.no_grad():
        blocks_of(student, described)[2].get_submodule(described.reader(Sublayer.FFN).name).weight.mul_(3)
    plain = prediction_divergence(student(TOKENS).logits, teacher(TOKENS).logits, 1.0)
    assert lesson.loss(student, TOKENS).item() > plain.item() > 0


def test_states_are_those_of_the_last_pass_before_the_final_norm(tmp_path):
    model = load_model(tiny_model("llama", tmp_path))
    watched = BlockOutputs.of(list(model.model.layers))
    for tokens in (TOKENS, TOKENS[:, :5]):
        seen = model(tokens, output_hidden_states=True)
        assert len(watched.states) == 4
        for found, expected in zip(watched.states[:-1], seen.hidden_states[1:-1], strict=True):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.model.norm(watched.states[-1]), seen.hidden_states[-1])
