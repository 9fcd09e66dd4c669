"""Latency tables: what is timed, what follows from the times, and the command that checks predictions."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import benchmarks.latency.shapes
import benchmarks.latency.stage
import benchmarks.studies.latency_table
import exporters.tensorrt.stage
from benchmarks.formulas.statistics import paired_ratio
from benchmarks.latency.cut_models import shape_of
from benchmarks.latency.fit import fit, misfit
from benchmarks.latency.shapes import WHOLE, Alike, Form, batches, blocks_needed, last_level_cache, shapes_to_time, spread
from benchmarks.latency.stage import adopt, latency_table, setting_of
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.studies.latency_table import errors, uneven_shapes
from benchmarks.timing.timing import CONTROL, DENSE
from exporters.recipe import BuildSlice, ExportSlice
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.latency import LatencyTable, Times
from tests.tiny import tiny_model

FORM = Form(recipe=BenchmarkSlice(workloads=(Workload(prompt=8, output=3),), rounds=30), options=RunOptions(threads=1))
REAL = Times(0.010, (0.0, 0.0030, 0.0041), (0, 8, 24, 40, 64, 80, 96), (0.0, 0.0010, 0.0013, 0.0016, 0.0021, 0.0024, 0.0027))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def dense(source: Path) -> Geometry:
    return Checkpoint(source).geometry


def timed(dense: Geometry, noise: float = 0.0) -> object:
    """What ``time_shapes`` gives on a machine whose times are ``REAL`` (a step), and ten times that (a prompt)."""

    def time_shapes(source, shapes, form, work, events, together=4):
        draw = np.random.default_rng(0)
        seconds = {name: _whole(shape) * (1 + noise * draw.standard_normal()) for name, shape in shapes.items()}
        by_phase = {"prefill": {name: 10 * found for name, found in seconds.items()}, "decode": seconds}
        rounds = dict.fromkeys(by_phase, form.recipe.rounds)
        control = {phase: [1.001, 0.999] for phase in by_phase}
        return {"seconds": {"8/3": by_phase}, "control": {"8/3": control}, "rounds": {"8/3": rounds}, "load_average": 0.1}

    def _whole(shape) -> float:
        return REAL.whole(dense.with_blocks(tuple(BlockShape(ffn, groups) for ffn, groups in shape["blocks"])))

    return time_shapes


def test_sizes_are_spread_over_tiles_and_end_at_what_the_block_has() -> None:
    assert spread(1536, 64, 6) == [64, 384, 640, 960, 1216, 1536]
    assert spread(3, 1, 8) == [1, 2, 3]
    assert spread(100, 32, 6) == [32, 64, 96, 100]
    assert spread(20, 64, 6) == [20]
    assert spread(96, 96, 6) == [96]


def test_every_size_is_timed_alone_and_the_whole_model_beside_them(dense: Geometry) -> None:
    shapes = shapes_to_time(dense, 32, 4.0)
    assert shapes == {
        DENSE: Alike(2, 96, 2),
        WHOLE: Alike(4, 96, 2),
        "ffn 0": Alike(4, 0, 2),
        "ffn 32": Alike(4, 32, 2),
        "ffn 64": Alike(3, 64, 2),
        "groups 1": Alike(3, 96, 1),
    }
    weights = {name: alike.blocks * dense.block_parameters(BlockShape(alike.width, alike.groups)) for name, alike in shapes.items()}
    least = weights[DENSE]
    assert all(weight >= least or shapes[name].blocks == len(dense.blocks) for name, weight in weights.items())
    assert shapes_to_time(dense, 32, 4.0, blocks=1)[DENSE].blocks == 1
    assert batches(list(shapes), 2) == [[WHOLE, "ffn 0"], ["ffn 32", "ffn 64"], ["groups 1"]]
    with pytest.raises(TrimlineError, match="differ already"):
        shapes_to_time(dense.with_blocks((BlockShape(96, 2), BlockShape(64, 2))), 32, 4.0)


def test_the_blocks_that_are_timed_outweigh_cache_and_head(dense: Geometry) -> None:
    for width in (4.0, 0.5625):
        block, head = dense.block_parameters(dense.blocks[0]) * width, dense.vocab * dense.hidden * width
        assert blocks_needed(dense, width) == math.ceil(max(2 * last_level_cache(), head) / block)


def test_the_fit_finds_the_parts_again(dense: Geometry) -> None:
    shapes = shapes_to_time(dense, 8, 4.0)
    seconds = {name: REAL.whole(dense.with_blocks((BlockShape(s.width, s.groups),) * s.blocks)) for name, s in shapes.items()}
    found = fit(shapes, seconds)
    assert found.widths == REAL.widths
    assert found.fixed == pytest.approx(REAL.fixed)
    assert found.ffn == pytest.approx(REAL.ffn)
    assert found.attention == pytest.approx(REAL.attention)
    assert max(map(abs, misfit(found, shapes, seconds).values())) < 1e-9


def test_noise_makes_no_wider_block_faster(dense: Geometry) -> None:
    shapes = shapes_to_time(dense, 8, 4.0)
    seconds = {name: 0.01 + 0.001 * (number % 3) for number, name in enumerate(shapes)}
    found = fit(shapes, seconds)
    assert list(found.ffn) == sorted(found.ffn)
    assert list(found.attention) == sorted(found.attention)
    assert found.fixed >= 0


def test_a_curve_is_as_straight_as_the_noise_allows(dense: Geometry) -> None:
    """Measured with errors of 2 %, of which the whole models of other sizes know nothing."""
    straight = Times(0.01, (0.0, 0.002, 0.003), (0, *range(8, 97, 8)), (0.0, *(0.001 + 0.0001 * width for width in range(8, 97, 8))))
    dense = dense.with_blocks(dense.blocks[:1] * 30)
    shapes, draw = shapes_to_time(dense, 8, 4.0, blocks=8), np.random.default_rng(1)
    exact = {name: straight.whole(dense.with_blocks((BlockShape(s.width, s.groups),) * s.blocks)) for name, s in shapes.items()}
    errors = []
    for _ in range(20):
        seconds = {name: time * (1 + 0.02 * draw.standard_normal()) for name, time in exact.items()}
        uneven = [dense.with_blocks(tuple(BlockShape(8 * draw.integers(1, 12), 1) for _ in dense.blocks)) for _ in range(5)]
        found = [fit(shapes, seconds, noise) for noise in (0.0, 0.02)]
        errors.append([sum((times.whole(shape) / straight.whole(shape) - 1) ** 2 for shape in uneven) for times in found])
        assert np.sqrt(np.mean(np.square(list(misfit(found[1], shapes, seconds).values())))) <= 0.02
    repeated, smooth = np.sqrt(np.mean(errors, axis=0))
    assert smooth < 0.9 * repeated
    assert max(map(abs, misfit(fit(shapes, exact, 0.02), shapes, exact).values())) < 1e-3


def test_many_groups_are_measured_at_some_and_filled_in_between(dense: Geometry, tmp_path: Path) -> None:
    many = Checkpoint(tiny_model("llama", tmp_path / "many", num_attention_heads=16, num_key_value_heads=16)).geometry
    shapes = shapes_to_time(many, 32, 4.0)
    groups = {shape.groups for shape in shapes.values()}
    assert len(groups) == 8
    assert {1, 16} <= groups
    seconds = {name: 0.01 + shape.blocks * (1e-4 + 1e-5 * shape.groups + 1e-6 * shape.width) for name, shape in shapes.items()}
    attention = fit(shapes, seconds).attention
    assert len(attention) == 17
    assert np.diff(attention[1:]) == pytest.approx(1e-5)


@pytest.mark.parametrize("runtime", ["torch", "tensorrt"])
def test_models_are_written_in_the_form_that_the_runtime_opens(source: Path, dense: Geometry, tmp_path: Path, monkeypatch, runtime) -> None:
    built, exported = [], []
    # Portable exports take many seconds, and engines need a GPU: what they are given is looked at.
    monkeypatch.setattr(benchmarks.latency.shapes, "export_shape", lambda *given: exported.append(given))
    monkeypatch.setattr(exporters.tensorrt.stage, "build", lambda onnx, *given, **more: built.append((onnx, given)))
    shape = Alike(2, 32, 1).shape(dense)
    form = Form(
        ExportSlice(lowering="portable"), BuildSlice(precision="int8"), FORM.recipe.model_copy(update={"runtime": runtime}), FORM.options
    )
    folder = form.write(source, shape, tmp_path / "1-0")
    if runtime == "torch":
        assert shape_of(Checkpoint(folder).geometry) == shape
        assert form.write(source, shape_of(dense), tmp_path / "2-0") == source
    else:
        assert folder == tmp_path / "1-0-engine"
        ((onnx, (recipe, requests, *_)),) = built
        assert onnx == tmp_path / "1-0"
        ((_, exported_shape, _, _, export),) = exported
        assert (exported_shape, export.lowering) == (shape, "portable")
        assert recipe.precision == "graph"
        assert [(request.prompt, request.output) for request in requests] == [(8, 3)]


def test_a_table_without_graphs_is_of_checkpoints(source: Path, dense: Geometry, tmp_path: Path, monkeypatch) -> None:
    recipe = FORM.recipe.model_copy(update={"runtime": "torch"})
    form = Form(None, None, recipe, FORM.options)
    shape = Alike(2, 32, 1).shape(dense)
    assert shape_of(Checkpoint(form.write(source, shape, tmp_path / "cut")).geometry) == shape
    assert form.weight_bytes == 4
    assert dataclasses.replace(form, options=RunOptions(device="cuda")).weight_bytes == 2  # torch holds fp16 there
    monkeypatch.setattr(benchmarks.latency.stage, "time_shapes", timed(dense))
    (tmp_path / "table").mkdir()
    latency_table(source, form, 8, tmp_path / "table", Events())
    setting = LatencyTable.read(tmp_path / "table").setting
    assert (setting["runtime"], setting["export"], setting["precision"]) == ("torch on cpu", None, "fp32")


def test_a_table_says_where_it_is_from_and_its_key_is_not_of_the_weights(source, dense, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(benchmarks.latency.stage, "time_shapes", timed(dense))
    said = []
    latency_table(source, FORM, 8, tmp_path, Events(said.append))
    table = LatencyTable.read(tmp_path)
    # The curves may be as far from what was measured as dense was from dense again, which is 0.1 %.
    assert table.predict(dense, "decode") == pytest.approx(REAL.whole(dense), rel=1e-3)
    assert table.predict(dense, "8/3") == pytest.approx(12 * REAL.whole(dense), rel=1e-3)
    assert (table.setting["runtime"], table.setting["precision"], table.setting["control_holds"]) == ("onnxruntime", "fp32", True)
    assert "within 0.1% of each" in said[-1].text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latency.json", "samples.json"]
    other = Checkpoint(tiny_model("llama", tmp_path / "other", seed=1)).geometry
    assert setting_of(other, FORM, 8) == setting_of(dense, FORM, 8)
    assert setting_of(dense, FORM, 16) != setting_of(dense, FORM, 8)


def test_rounds_are_kept_beside_what_follows_from_them(source, dense, tmp_path, monkeypatch) -> None:
    """Three shapes in two runs of unlike pace: the medians, controls and counts are those of the rounds that are kept."""
    calls: list[float] = []

    def timed_run(folders, recipe, options):
        calls.append(pace := 1.0 + len(calls))
        names = [*folders, CONTROL]
        return {("8/3", "decode"): {name: [pace * (2 + place + 0.1 * number) for number in range(5)] for place, name in enumerate(names)}}

    monkeypatch.setattr(benchmarks.latency.stage, "_timed", timed_run)
    monkeypatch.setattr(Form, "write", lambda self, source, shape, out: out)
    shapes = dict.fromkeys((DENSE, "a", "b", "c"), shape_of(dense))
    found = json.loads(json.dumps(benchmarks.latency.stage.time_shapes(source, shapes, FORM, tmp_path, Events(), together=2)))
    runs = found["samples"]["8/3"]["decode"]
    assert [set(run) for run in runs] == [{DENSE, "a", "b", CONTROL}, {DENSE, "c", CONTROL}]
    assert found["rounds"]["8/3"]["decode"] == 5
    assert found["control"]["8/3"]["decode"] == pytest.approx([faster(run, CONTROL) for run in runs])
    seconds = found["seconds"]["8/3"]["decode"]
    assert seconds[DENSE] == pytest.approx(np.median(runs[0][DENSE] + runs[1][DENSE]))
    assert seconds["c"] == pytest.approx(seconds[DENSE] / faster(runs[1], "c"))


def faster(run: dict[str, list[float]], name: str) -> float:
    """Than dense, by opening."""
    return paired_ratio(run[DENSE], run[name], each=FORM.recipe.rounds_per_opening).value


def test_a_table_of_before_is_taken_over_only_where_it_says_the_same(source, dense, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(benchmarks.latency.stage, "time_shapes", timed(dense))
    folder, out = tmp_path / "table", tmp_path / "out"
    for place in (folder, out):
        place.mkdir()
    latency_table(source, FORM, 8, folder, Events())
    adopt(folder, source, FORM, 8, out, Events())
    assert LatencyTable.read(out) == LatencyTable.read(folder)
    more = FORM.recipe.model_copy(update={"rounds": 99, "latency_table": str(folder)})
    adopt(folder, source, dataclasses.replace(FORM, recipe=more), 8, out, Events())  # other rounds of the same thing
    other = tiny_model("llama", tmp_path / "other", intermediate_size=64)
    for found, form, tile, words in (
        (source, FORM, 16, "another tile: 8, and here 16"),
        (source, dataclasses.replace(FORM, options=RunOptions(threads=2)), 8, "another machine: threads 1, and here 2"),
        (source, dataclasses.replace(FORM, export=ExportSlice(precision="int8")), 8, "another export: precision fp32, and here int8"),
        (other, FORM, 8, "another model: block"),
    ):
        with pytest.raises(TrimlineError, match=words):
            adopt(folder, found, form, tile, out, Events())


def test_a_table_is_taken_over_for_the_recipes_workloads_in_their_order(source, dense, tmp_path, monkeypatch) -> None:
    first, second = FORM.recipe.workloads[0], Workload(prompt=16, output=5)
    of_first = timed(dense)

    def of_both(*arguments, **options):
        found = of_first(*arguments, **options)
        for what in ("seconds", "control", "rounds"):
            found[what][second.name] = found[what][first.name]
        found["control"][second.name] = {phase: [1.2] for phase in found["control"][first.name]}
        return found

    def form(*workloads: Workload) -> Form:
        return dataclasses.replace(FORM, recipe=FORM.recipe.model_copy(update={"workloads": workloads}))

    monkeypatch.setattr(benchmarks.latency.stage, "time_shapes", of_both)
    folder, out, said = tmp_path / "table", tmp_path / "out", []
    for place in (folder, out):
        place.mkdir()
    latency_table(source, form(first, second), 8, folder, Events())
    adopt(folder, source, form(second, first), 8, out, Events(said.append))
    assert [entry.workload for entry in LatencyTable.read(out).entries] == ["16/5", "16/5", "8/3", "8/3"]
    assert "did not agree with itself" in said[-1].text
    adopt(folder, source, form(second), 8, out, Events())
    assert {entry.workload for entry in LatencyTable.read(out).entries} == {"16/5"}
    with pytest.raises(TrimlineError, match="does not know the workload 99/2; it has 16/5, 8/3"):
        adopt(folder, source, form(first, Workload(prompt=99, output=2)), 8, out, Events())


def test_whole_models_for_the_check_are_uneven_and_of_all_sizes(dense: Geometry) -> None:
    found = uneven_shapes(dense, 32, 6)
    assert found == uneven_shapes(dense, 32, 6)
    sizes = [shape.decoder_parameters() / dense.decoder_parameters() for shape in found.values()]
    assert max(sizes) > 0.8
    assert min(sizes) < 0.7
    for shape in found.values():
        assert len(shape.blocks) == 4
        assert shape.blocks[0].ffn
        assert shape.blocks[0].kv_groups
        assert all(block.ffn % 32 == 0 and block.ffn <= 96 and block.kv_groups <= 2 for block in shape.blocks)


def test_errors_are_of_predicted_speed_ups() -> None:
    rows = [{"workload": "8/3", "phase": "decode", "error": error} for error in (0.02, -0.06)]
    assert errors(rows) == {("8/3", "decode"): (pytest.approx(0.04), 0.06)}


@pytest.mark.parametrize(("noise", "rounds", "outcome"), [(0.0, 30, "reached"), (0.3, 30, "missed"), (0.0, 5, "not resolved")])
def test_the_command_prints_and_fills_what_it_measured(source, dense, tmp_path, monkeypatch, noise, rounds, outcome) -> None:
    monkeypatch.setattr(benchmarks.latency.stage, "time_shapes", timed(dense))
    monkeypatch.setattr(benchmarks.studies.latency_table, "time_shapes", timed(dense, noise))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- latency-table:begin -->\n<!-- latency-table:end -->\nafter\n")
    app = benchmarks.studies.latency_table.typer.Typer()
    app.command()(benchmarks.studies.latency_table.main)
    monkeypatch.setattr(benchmarks.studies.latency_table, "_recipe", lambda runtime, r, s: FORM.recipe.model_copy(update={"rounds": r}))
    command = [str(source), "--output", str(tmp_path / "out"), "--tile", "8", "--rounds", str(rounds), "--page", str(page), "--fill"]
    called = CliRunner().invoke(app, command)
    assert called.exit_code == 0, called.output
    assert f"over {rounds} rounds; bar 5%: {outcome}" in called.output
    assert "| uneven 6 |" in called.output
    assert called.output.strip().splitlines()[-1] in page.read_text()
    monkeypatch.setattr(benchmarks.studies.latency_table, "time_shapes", None)  # what is there is not measured again
    assert CliRunner().invoke(app, command).output == called.output


def test_the_command_refuses_what_it_cannot_time(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(benchmarks.studies.latency_table, "cuda_devices", lambda: [])
    app = benchmarks.studies.latency_table.typer.Typer()
    app.command()(benchmarks.studies.latency_table.main)
    refused = ((["--runtime", "tensorrt"], "needs a GPU"), (["--runtime", "tpu"], "no runtime 'tpu'"), (["--precision", "int3"], "'int3'"))
    for more, words in refused:
        called = CliRunner().invoke(app, [str(source), "--output", str(tmp_path / "out"), *more])
        assert called.exit_code == 2
        assert words in called.output


def test_engines_are_built_of_portable_graphs(monkeypatch) -> None:
    monkeypatch.setattr(benchmarks.studies.latency_table, "cuda_devices", lambda: ["a GPU"])
    recipe = benchmarks.studies.latency_table._recipe("tensorrt", 25, 60.0)
    form = benchmarks.studies.latency_table._form("tensorrt", "fp16", recipe, RunOptions(threads=1))
    assert (form.export.lowering, form.export.precision, form.build) == ("portable", "fp16", BuildSlice())
    assert (
        benchmarks.studies.latency_table._form(
            "onnxruntime_cuda", "fp16", recipe.model_copy(update={"runtime": "onnxruntime_cuda"}), RunOptions()
        ).build
        is None
    )
