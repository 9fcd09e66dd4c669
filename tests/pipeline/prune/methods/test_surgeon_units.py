"""LLM Surgeon on units: costs against a plain backward pass and dense solutions; then every family through the rebuild's gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.live.blocks
from pipeline.architecture.families import Axis, Linear, Sublayer
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import SUBLAYERS, Space
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.live.loading import load_model
from pipeline.plan.plan import Plan
from pipeline.prune.kronecker.factors import with_bias, with_constant
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.prune.steps import resolve_steps
from tests.pipeline.rebuild.cases import rebuilt
from tests.pipeline.units import parts_of_units
from tests.quick import quick_alone
from tests.tiny import TINY_FAMILIES, tiny_model

WINDOWS = torch.randint(4, 100, (6, 24), generator=torch.Generator().manual_seed(3))
BOTH: dict[str, Any] = {"method": "llm_surgeon", "budget": {"ffn": {"remove": 0.5}, "kv_group": {"remove": 0.5}}, "round_to": 8}
POOLED: dict[str, Any] = {"method": "llm_surgeon", "pooled": {"remove": 0.3}, "round_to": 8}
DAMPING = 0.01


def planned(folder: Path, *steps: dict[str, Any]) -> tuple[Plan, ShrinkingModel]:
    recipe = PruneSlice.model_validate({"steps": steps})
    resolve_steps(recipe)
    model = ShrinkingModel(load_model(folder, dtype=torch.float32), Checkpoint(folder))
    return make_plan(model, WINDOWS, recipe, Events()), model


class Measured:
    """Weight, inputs and output gradients of one projection of block 2, by hooks and one backward pass per sequence."""

    def __init__(self, folder: Path, linear: Linear) -> None:
        self.geometry = Checkpoint(folder).geometry
        model = load_model(folder, dtype=torch.float32)
        module = model.get_submodule(self.geometry.family.module(2, linear.name))
        read, slopes = [], []
        module.register_forward_hook(lambda _, inputs, output: (read.append(inputs[0]), output.register_hook(slopes.append))[0] and None)
        for window in WINDOWS:
            model(window[None], labels=window[None]).loss.backward()
        self.linear, self.biased = linear, module.bias is not None
        self.inputs = torch.cat([part.detach().flatten(0, -2) for part in read]).double()
        gradients = torch.cat([part.flatten(0, -2) for part in slopes]).double()
        self.weight = with_bias(module.weight.detach(), module.bias.detach() if self.biased else None).double()
        self.outputs = gradients.T @ gradients / len(gradients)
        self.moment = self.inputs.T @ self.inputs / len(self.inputs)
        if self.biased:
            self.moment = with_constant(self.moment, self.inputs.mean(0))

    def damped(self, matrix: torch.Tensor) -> torch.Tensor:
        """Of what is live: a channel that never fires counts in no mean."""
        diagonal = matrix.diagonal()
        return matrix + DAMPING * diagonal[diagonal != 0].mean() * torch.eye(len(matrix), dtype=matrix.dtype)

    def columns(self, unit: int) -> list[int]:
        width = self.geometry.unit_width(self.linear.columns)
        return list(range(unit * width, (unit + 1) * width))

    def rise(self, unit: int) -> float:
        """½ tr(G D A Dᵀ) of the change that zeroes a unit's columns and is best elsewhere, A damped."""
        inputs, gone = self.damped(self.moment), self.columns(unit)
        if not self.moment[gone].any():
            return 0.0  # dead
        kept = [column for column in range(len(inputs)) if column not in gone]
        change = -self.weight.clone()
        change[:, kept] = torch.linalg.solve(inputs[kept][:, kept], inputs[kept][:, gone] @ self.weight[:, gone].T).T
        return (self.outputs @ change @ inputs * change).sum().item() / 2

    def row_costs(self) -> torch.Tensor:
        inverse = torch.linalg.inv(self.damped(self.outputs))
        costs = torch.stack([(row @ self.moment @ row) / inverse[i, i] / 2 for i, row in enumerate(self.weight)])
        return costs * (self.outputs.diagonal() != 0)

    def column_costs(self) -> torch.Tensor:
        inverse = torch.linalg.inv(self.damped(self.moment))
        costs = torch.stack([(column @ self.outputs @ column) / inverse[j, j] / 2 for j, column in enumerate(self.weight.T)])
        return costs * (self.moment.diagonal() != 0)


def scores_of(folder: Path, space: Space, **options: Any) -> torch.Tensor:
    plan, _ = planned(folder, {"method": "llm_surgeon", "budget": {space.value: {"remove": 0.5}}, "round_to": 8, "options": options})
    return plan.scores[f"step0.{space}.2"].double()


FAMILIES = ("llama", "qwen2", "opt")  # no bias; biases of the writers; biases everywhere


@pytest.mark.parametrize("space", SUBLAYERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_costs_what_its_best_removal_raises_the_loss_by(tmp_path: Path, family: str, space: Space) -> None:
    folder = tiny_model(family, tmp_path)
    reader = Measured(folder, Checkpoint(folder).geometry.family.reader(SUBLAYERS[space]))
    scores = scores_of(folder, space)
    assert scores.tolist() == pytest.approx([reader.rise(unit) for unit in range(len(scores))], rel=2e-3)


@pytest.mark.parametrize("space", SUBLAYERS)
@pytest.mark.parametrize("family", [*FAMILIES, "phi3"])
def test_published_costs_add_up(tmp_path: Path, family: str, space: Space) -> None:
    folder = tiny_model(family, tmp_path)
    described, sublayer = Checkpoint(folder).geometry.family, SUBLAYERS[space]
    reader = Measured(folder, described.reader(sublayer))
    width = reader.geometry.unit_width(reader.linear.columns)
    expected = reader.column_costs()[: reader.inputs.shape[1]].view(-1, width).sum(1)
    for linear in described.writers(sublayer):
        per_row = Measured(folder, linear).row_costs()[:, None]
        expected = expected + torch.stack([part.sum() for part in parts_of_units(per_row, linear, reader.geometry, block=2)])
    torch.testing.assert_close(scores_of(folder, space, cost="published_sum"), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("variant", ["surgeon", "l_obd"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_a_channel_of_the_stream_costs_what_its_columns_and_rows_do(tmp_path: Path, family: str, variant: str) -> None:
    folder = tiny_model(family, tmp_path)
    expected = torch.zeros(64, dtype=torch.float64)
    for linear in Checkpoint(folder).geometry.family.linears:
        seen, reads = Measured(folder, linear), linear.columns is Axis.RESIDUAL
        if variant == "surgeon":
            expected += seen.column_costs()[:64] if reads else seen.row_costs()
        else:
            costs = seen.weight.square() * seen.moment.diagonal() / 2
            expected += costs.sum(0)[:64] if reads else costs.sum(1)
    torch.testing.assert_close(scores_of(folder, Space.RESIDUAL, variant=variant), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("shots", [1, 2])
def test_channels_of_the_stream_and_units_go_together(tmp_path: Path, shots: int) -> None:
    folder = tiny_model("llama", tmp_path / "dense")
    both = {"residual": {"remove": 0.25}, "ffn": {"remove": 0.25}}
    plan, model = planned(folder, BOTH | {"budget": both, "shots": shots, "compensation": "least_squares"})
    assert model.current.hidden == len(plan.selection.residual) == 48
    assert sum(block.ffn for block in model.current.blocks) == 0.75 * sum(block.ffn for block in model.geometry.blocks)
    out = rebuilt(tmp_path, folder, plan, Profile.FREE)
    assert json.loads((out / "gate.json").read_text())["passed"]
    assert Checkpoint(out).geometry.hidden == 48


def test_marginal_costs_and_sizes(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    reader = Measured(folder, Checkpoint(folder).geometry.family.reader(Sublayer.ATTENTION))
    expected = []
    for unit in range(2):
        columns = reader.columns(unit)
        part = reader.weight[:, columns]
        expected.append((reader.outputs @ part @ reader.moment[columns][:, columns] * part).sum() / 2)
    scores = scores_of(folder, Space.KV_GROUP, variant="k_obd")
    torch.testing.assert_close(scores, torch.stack(expected), rtol=2e-3, atol=0)
    divided = scores_of(folder, Space.KV_GROUP, variant="k_obd", per_parameter=True)
    torch.testing.assert_close(divided, scores / (6 * 16 * 64), rtol=1e-5, atol=0)  # 2 query heads, k, v, and 2 heads' columns of o


@pytest.mark.parametrize("cost", ["coupled", "published_sum"])
def test_l_obd_sees_every_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: str) -> None:
    """The published baseline overwrites its second moment with each batch, so that only the last one counts."""
    folder = tiny_model("opt", tmp_path)
    monkeypatch.setattr(pipeline.live.blocks, "BATCH_TOKENS", WINDOWS.shape[1])  # one sequence at a time
    scores = scores_of(folder, Space.FFN, variant="l_obd", cost=cost)
    family = Checkpoint(folder).geometry.family
    linears = [family.reader(Sublayer.FFN), *(family.writers(Sublayer.FFN) if cost == "published_sum" else ())]
    every, last = torch.zeros(96, dtype=torch.float64), torch.zeros(96, dtype=torch.float64)
    for linear in linears:
        seen = Measured(folder, linear)
        tokens = torch.cat((seen.inputs, torch.ones(len(seen.inputs), 1)), dim=1)
        for total, part in ((every, tokens), (last, tokens[-WINDOWS.shape[1] :])):
            costs = seen.weight.square() * part.square().sum(0) / len(tokens) / 2
            total += costs[:, :96].sum(0) if linear.columns is Axis.FFN else costs.sum(1)
    torch.testing.assert_close(scores, every, rtol=1e-4, atol=0)
    assert scores.sum() > 3 * last.sum()


def test_units_that_went_cost_nothing_and_do_not_come_back(tmp_path: Path) -> None:
    folder = tiny_model("opt", tmp_path)
    plan, model = planned(folder, POOLED | {"shots": 3})
    first, *_, last = plan.steps
    for name, kept in last.kept.items():
        assert set(kept) <= set(first.kept[name])
    assert all(torch.isfinite(score).all() for score in plan.scores.values())
    everything = planned(folder, BOTH)[0]
    assert [len(units) for units in plan.selection.ffn] != [len(units) for units in everything.selection.ffn]
    assert model.current.blocks == plan.selection.geometry(model.geometry).blocks


def test_the_cheapest_go_wherever_they_are(tmp_path: Path) -> None:
    plan, _ = planned(tiny_model("llama", tmp_path), BOTH | {"budget": {"ffn": {"remove": 0.5}}, "round_to": 1})
    scores = torch.stack([plan.scores[f"step0.ffn.{block}"] for block in range(4)])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for block, units in enumerate(plan.selection.ffn):
        kept[block, list(units)] = True
    assert kept.sum() == 2 * 96
    assert scores[kept].min() >= scores[~kept].max()


@pytest.mark.parametrize("shots", [7, 40])
@pytest.mark.parametrize("round_to", [1, 8])
def test_many_shots_reach_the_budget(tmp_path: Path, shots: int, round_to: int) -> None:
    """Parts smaller than a tile add up: a shot's share is what is missing by then."""
    folder = tiny_model("llama", tmp_path, num_hidden_layers=2)
    plan, model = planned(folder, POOLED | {"shots": shots, "round_to": round_to, "compensation": "least_squares"})
    assert len(plan.steps) == shots
    removed = 1 - model.current.decoder_parameters() / model.geometry.decoder_parameters()
    unit = 3 * 64 / model.geometry.decoder_parameters()
    assert removed == pytest.approx(0.3, abs=(round_to / 2 + 1) * unit)
    counts = [sum(len(kept) for kept in step.kept.values()) for step in plan.steps]
    assert counts == sorted(counts, reverse=True)


CASES = [(family, step) for family in TINY_FAMILIES for step in (POOLED | {"shots": 2}, BOTH)]


@pytest.mark.parametrize(("family", "step"), quick_alone(CASES, CASES[::4], unpacked=True))
def test_every_family_is_rebuilt(tmp_path: Path, family: str, step: dict[str, Any]) -> None:
    folder = tiny_model(family, tmp_path / "dense")
    plan, model = planned(folder, step | {"compensation": "least_squares"})
    out = rebuilt(tmp_path, folder, plan, Profile.FREE)
    assert json.loads((out / "gate.json").read_text())["passed"]
    assert Checkpoint(out).geometry.blocks == model.current.blocks
    assert model.current.decoder_parameters() < 0.75 * model.geometry.decoder_parameters()


@pytest.mark.parametrize(
    ("step", "option"),
    [
        (POOLED | {"options": {"together": 100, "damping_inputs": 0.1}}, "together"),
        ({"method": "llm_surgeon", "budget": {"weight": {"remove": 0.5}}, "options": {"cost": "coupled"}}, "cost"),
    ],
)
def test_an_option_that_says_nothing_is_refused(step: dict[str, Any], option: str) -> None:
    with pytest.raises(TrimlineError, match=f"The option {option} of llm_surgeon says nothing about"):
        resolve_steps(PruneSlice.model_validate({"steps": [step]}))
