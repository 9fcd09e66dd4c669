"""Losses against their definitions; blocks that belong together are the ones compared."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.architecture.families import Sublayer, family_named
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.blocks import blocks_of
from pipeline.live.loading import load_model
from pipeline.recover.losses.distillation import BlockOutputs, Lesson
from pipeline.recover.losses.divergence import judged_divergence, judged_text, prediction_divergence, state_distance
from pipeline.recover.losses.expected import expectations, expected_divergence, is_plain
from pipeline.recover.losses.head import Head
from pipeline.recover.losses.parts import mean_in_parts
from pipeline.recover.losses.teacher import Teacher
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
    heads = [Head(model, blocks_of(model, described)) for model in (teacher, student)]
    lesson = Lesson(heads[1], Teacher(teacher, blocks_of(teacher, described)), 1.0, 0.5, *watched)
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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_in_parts_the_divergence_has_the_same_value_and_gradients(temperature, at_once):
    states, weight, logits = torch.randn(13, 6), torch.randn(40, 6), torch.randn(13, 40)
    whole, parts = [tuple(torch.nn.Parameter(tensor.clone()) for tensor in (states, weight)) for _ in range(2)]
    expected = prediction_divergence(whole[0] @ whole[1].T, logits, temperature)
    found = mean_in_parts(
        lambda given, part: judged_divergence(given @ parts[1].T, logits[part].clone(), temperature), parts[0], at_once, [parts[1]]
    )
    torch.testing.assert_close(found, expected)
    for loss in (expected, found):
        (3 * loss).backward()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            mean_in_parts(lambda *_: judged_divergence(states @ weight.T, logits.clone(), temperature), states, 13, []), expected
        )


def test_in_parts_the_text_has_the_same_value_and_gradients():
    states, weight, targets = torch.randn(9, 6), torch.randn(40, 6), torch.tensor([3, 4, -1, 0, 39, 7, 7, -1, 2])
    whole, parts = [tuple(torch.nn.Parameter(tensor.clone()) for tensor in (states, weight)) for _ in range(2)]
    expected = torch.nn.functional.cross_entropy(whole[0] @ whole[1].T, targets, ignore_index=-1)
    found = mean_in_parts(lambda given, part: judged_text(given @ parts[1].T, targets[part]), parts[0], 4, [parts[1]]) * 9 / 7
    torch.testing.assert_close(found, expected)
    for loss in (expected, found):
        loss.backward()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_frozen_heads_and_states_get_no_gradient():
    states, weight, logits = torch.randn(4, 6).requires_grad_(), torch.randn(40, 6), torch.randn(4, 40)
    mean_in_parts(lambda given, part: judged_divergence(given @ weight.T, logits[part].clone(), 1.0), states, 3, []).backward()
    assert states.grad is not None
    head = torch.nn.Parameter(weight)
    mean_in_parts(lambda given, part: judged_divergence(given @ head.T, logits[part].clone(), 1.0), states.detach(), 3, [head]).backward()
    assert head.grad is not None


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("taught", [True, False], ids=["distillation", "text"])
def test_the_lesson_is_the_models_own_loss(family, taught, tmp_path):
    """Value and every gradient, head and scales included, against the model's own logits of all positions."""
    folder, described = tiny_model(family, tmp_path), family_named(family)
    models = [load_model(folder, dtype=torch.float32) for _ in range(3)]
    for model in models[:2]:
        with torch.no_grad():
            blocks_of(model, described)[1].get_submodule(described.reader(Sublayer.FFN).name).weight.mul_(3)
    student, own, dense = models
    teacher = Teacher(dense, blocks_of(dense, described)) if taught else None
    loss = Lesson(Head(student, blocks_of(student, described)), teacher).loss(student, TOKENS)
    logits = own(TOKENS).logits
    if taught:
        expected = prediction_divergence(logits, dense(TOKENS).logits.detach(), 1.0)
    else:
        expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-4)
    loss.backward()
    expected.backward()
    for (name, found), wanted in zip(student.named_parameters(), own.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), name
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_kept_states_give_the_same_logits_without_the_blocks(tmp_path):
    model = load_model(tiny_model("llama", tmp_path / "model"))
    teacher = Teacher(model, model.model.layers)
    with torch.no_grad():
        expected = [model(window[None]).logits[0] for window in TOKENS]
    teacher.keep(TOKENS, tmp_path / "work", Events())
    assert all(parameter.device.type == "meta" for parameter in model.model.layers.parameters())
    kept = teacher.states(TOKENS[[1, 0]], torch.tensor([1, 0]))
    for states, logits in zip(kept, reversed(expected), strict=True):
        assert torch.equal(teacher.head.logits(states), logits)
    place = tmp_path / "work" / "teacher.safetensors"
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    again = load_model(tmp_path / "model")
    with pytest.raises(TrimlineError, match=r"teacher\.safetensors was changed"):
        Teacher(again, again.model.layers).keep(TOKENS, tmp_path / "work", Events())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_expectations_give_the_divergence_and_its_gradient(temperature, tmp_path):
    """Through the head of one model of the predictions of another, whose head is another one."""
    folder = tiny_model("llama", tmp_path / "model")
    dense, student = load_model(folder, dtype=torch.float32), load_model(folder, dtype=torch.float32)
    student.requires_grad_(False)
    with torch.no_grad():
        dense.lm_head.weight.mul_(1.5)
    head, teacher = (Head(model, model.model.layers) for model in (student, dense))
    assert is_plain(head)
    taught, given = torch.randn(11, 64), torch.randn(11, 64)
    kept = expectations(taught, teacher, head.weight, temperature)
    assert kept.shape == (11, 65)
    one, other = (given.clone().requires_grad_() for _ in range(2))
    expected = prediction_divergence(one @ head.weight.T, teacher.logits(taught).detach(), temperature)
    found = expected_divergence(other, kept, head.weight, temperature)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for loss in (expected, found):
        (2 * loss).backward()
    torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("change", ["trained", "scaled"])
def test_a_head_that_is_trained_or_does_more_is_not_plain(change, tmp_path):
    model = load_model(tiny_model("llama", tmp_path / "model"), dtype=torch.float32)
    model.requires_grad_(change == "trained")
    if change == "scaled":
        own = model.forward

        def scaled(*arguments, **named):
            found = own(*arguments, **named)
            found.logits = torch.tanh(found.logits)
            return found

        model.forward = scaled
    assert not is_plain(Head(model, model.model.layers))
