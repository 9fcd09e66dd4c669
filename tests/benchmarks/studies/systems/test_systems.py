from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from benchmarks.latency import cut_models as systems_shapes
from benchmarks.latency.cut_models import export_shape, plan_of, shape_of
from benchmarks.machine.environment import processor_flags
from benchmarks.machine.memory import AnonymousPeak, process_memory
from benchmarks.recipe import BenchmarkSlice
from benchmarks.results.document import Results
from benchmarks.studies.systems import __main__ as systems
from benchmarks.studies.systems import speed as systems_speed
from benchmarks.studies.systems import systems as systems_list
from benchmarks.studies.systems.asking import anywhere, even_budget, even_widths, ffn_alone, pooled, two_four
from benchmarks.studies.systems.measure import Setting, without_paths
from benchmarks.studies.systems.row import Pruning
from benchmarks.studies.systems.speed import Speeds, TimingPlan, is_timed, of_rows, time_shapes, timings
from benchmarks.studies.systems.systems import DENSE, OURS, OURS_FFN, SYSTEMS, System, SystemRow, rows_of
from pipeline.architecture.families import FAMILIES, Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.artefacts.artefact import digest
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.options import RunOptions
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.plan.plan import Plan
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.prune.steps import resolve_steps
from pipeline.sources.recipe import CalibrationWindows
from tests.benchmarks.results.sample_results import comparison_record, results
from tests.benchmarks.studies.systems.test_tables import compared
from tests.tiny import tiny_model

SMOL = Geometry(FAMILIES["llama"], 576, 64, 3, 49152, True, 0, (BlockShape(1536, 3),) * 30, {})
CALIBRATION = CalibrationWindows(windows=4, window=64)


# --- what is asked of the systems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("remove", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_blocks_alike_meet_the_definition_to_half_a_tile(remove: float) -> None:
    budget = even_budget(SMOL, remove)
    widths = budget[Space.FFN].keep
    groups = budget[Space.KV_GROUP].keep if Space.KV_GROUP in budget else 3
    assert isinstance(widths, tuple)
    assert isinstance(groups, int)
    left = SMOL.with_blocks(tuple(BlockShape(width, groups) for width in widths)).decoder_parameters()
    half_a_tile = 32 * SMOL.block_parameters(BlockShape(1, 0))
    assert abs(left - (1 - remove) * SMOL.decoder_parameters()) <= half_a_tile
    assert abs((3 - groups) / 3 - remove) <= 1 / 6 + 1e-9
    assert all(width % 64 == 0 for width in widths)
    assert max(widths) - min(widths) in (0, 64)


@pytest.mark.parametrize("remove", [0.1, 0.2, 0.3, 0.5, 0.7])
def test_the_ffn_alone_meets_it_too_where_blocks_are_alike(remove: float) -> None:
    widths = even_widths(SMOL, remove)
    left = SMOL.with_blocks(tuple(BlockShape(width, 3) for width in widths)).decoder_parameters()
    assert abs(left - (1 - remove) * SMOL.decoder_parameters()) <= 32 * SMOL.block_parameters(BlockShape(1, 0))
    assert all(width % 64 == 0 for width in widths)
    assert max(widths) - min(widths) in (0, 64)


def test_a_model_whose_blocks_differ_or_a_budget_beyond_it_is_refused() -> None:
    with pytest.raises(TrimlineError, match="differ"):
        even_budget(SMOL.with_blocks((BlockShape(1536, 3), BlockShape(64, 3))), 0.2)
    with pytest.raises(TrimlineError, match="differ"):
        even_widths(SMOL.with_blocks((BlockShape(1536, 3), BlockShape(64, 3))), 0.2)
    with pytest.raises(TrimlineError, match="less than 64"):
        even_budget(SMOL, 0.95)


@pytest.mark.parametrize("row", rows_of(SYSTEMS, (0.2, 0.3, 0.5), (0.25,))[1:], ids=lambda row: row.name)
def test_every_row_is_a_sound_recipe_on_the_same_tokens(row: SystemRow) -> None:
    recipe = row.recipe(SMOL, CALIBRATION)
    assert recipe is not None
    resolve_steps(recipe)
    assert recipe.calibration == CALIBRATION
    assert PruneSlice.model_validate(recipe.model_dump(mode="json", exclude_defaults=True)) == recipe
    stays = row.size == "2:4" or row.system.name in {"wanda", "sparsegpt"}
    assert row.profile is (Profile.UNIFORM if stays else Profile.FREE)
    if not row.is_sparse:
        assert row.system.own(dict.fromkeys(("ffn_channels", "kv_groups", "blocks", "decoder_parameters"), 0.125)).startswith("12.5 %")


def test_rows_are_sorted_by_size_with_more_of_ours() -> None:
    found = rows_of(SYSTEMS, (0.3, 0.2), (0.25,))
    assert found[0] == SystemRow(DENSE)
    smaller = [row.remove for row in found[1:] if row.remove]
    assert smaller == sorted(smaller)
    assert [row.size == "2:4" for row in found] == sorted(row.size == "2:4" for row in found)
    assert [row.name for row in found if row.remove == 0.25] == [f"{OURS}-0.25"]
    assert {row.size for row in rows_of(SYSTEMS, (0.3,), (), sparse=False)} == {"–", "30 %"}
    assert {row.system.name for row in found if row.remove == 0.3} == {system.name for system in SYSTEMS}


# --- one row -----------------------------------------------------------------------------------------------------------


def test_the_peak_of_anonymous_memory_is_seen_after_it_is_gone() -> None:
    before = process_memory()["anonymous"]
    if before is None:
        pytest.skip("this system does not tell anonymous memory")
    with AnonymousPeak() as peak:
        block = np.ones(2**26, np.uint8)
        block += 1
        torch.ones(10**6).sort()
        del block
    assert peak.bytes is not None
    assert before + 0.9 * 2**26 < peak.bytes < before + 4 * 2**26


def test_what_pruning_took_stands_beside_the_plan(tmp_path: Path) -> None:
    model, out = tiny_model("llama", tmp_path / "dense", intermediate_size=256), tmp_path / "plan"
    out.mkdir()
    (tmp_path / "calibration.txt").write_text("abcdefgh " * 200, encoding="utf-8")
    recipe = PruneSlice(calibration=CALIBRATION, steps=ffn_alone("cfsp")(SMOL, 0.3))
    Pruning(model, tmp_path, recipe, RunOptions(threads=1)).plan(out)
    cost = json.loads((out / "cost.json").read_text())
    assert cost["wall"] > 0 < cost["processor"]
    assert (out / "plan.json").is_file()


@pytest.mark.parametrize("ours", [False, True])
def test_sizes_on_the_way_of_a_run_are_those_of_shorter_runs(tmp_path: Path, ours: bool) -> None:
    model, out, alone = tiny_model("llama", tmp_path / "dense", intermediate_size=256), tmp_path / "work", tmp_path / "alone"
    for folder in (out, alone):
        folder.mkdir()
    (tmp_path / "calibration.txt").write_text("abcdefgh " * 200, encoding="utf-8")

    def recipe(shots: int) -> PruneSlice:
        step = pooled(OURS, shots=shots) if ours else ffn_alone("cfsp", shots=shots, compensation="least_squares")
        return PruneSlice(calibration=CALIBRATION, steps=step(SMOL, 0.2 * shots))

    shots = Pruning(model, tmp_path, recipe(2), RunOptions(threads=1)).kept_shots(out)
    Pruning(model, tmp_path, recipe(1), RunOptions(threads=1)).plan(alone)
    first, last, lone = (Plan.read(folder).selection for folder in (shots / "1", shots / "2", alone))
    assert first == lone != last
    # Ours states the whole run in every shot's plan, and there alone.
    for name in ("updates.safetensors", "scores.safetensors", *(() if ours else ("plan.json",))):
        assert (shots / "1" / name).read_bytes() == (alone / name).read_bytes()
        assert (shots / "2" / name).read_bytes() != (alone / name).read_bytes()
    sooner, later = (json.loads((shots / number / "cost.json").read_text()) for number in "12")
    assert 0 < sooner["wall"] < later["wall"]


def test_only_sizes_that_a_run_passes_are_its_models() -> None:
    surgeon = next(system for system in SYSTEMS if system.through)
    assert [SystemRow(surgeon, size).shot for size in (0.1, 0.2, 0.3, 0.5, 0.25, 0.6, None)] == [1, 2, 3, 5, None, None, None]
    whole, on_the_way, apart = (SystemRow(surgeon, size).recipe(SMOL, CALIBRATION) for size in (0.5, 0.2, 0.25))
    assert on_the_way == whole != apart


# --- the whole command ---------------------------------------------------------------------------------------------------

TINY = (
    System("cfsp", "CFSP", ffn_alone("cfsp"), lambda removed: "of channels", two_four("magnitude")),
    System("absent", "Absent", ffn_alone("absent")),
    System("wanda", "Wanda", zeroing=anywhere("wanda")),
    System(OURS, "Trimline", ffn_alone("magnitude"), lambda removed: "of everything"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command on a tiny model with three systems, one of which there is not, run twice."""
    pytest.importorskip("onnxruntime_genai", reason="the fused lowering is built by onnxruntime-genai")
    folder = tmp_path_factory.mktemp("systems")
    tiny_model("llama", folder / "dense", intermediate_size=256, max_position_embeddings=1024)
    for name, words in (("calibration", "one two three "), ("evaluation", "other words are here ")):
        (folder / f"{name}.txt").write_text("".join(f"{words}{number} " for number in range(60)), encoding="utf-8")
    for name, places in (("front", ("systems-few",)), ("page", ("systems", "systems-verdict"))):
        text = "".join(f"<!-- {place}:begin -->\n<!-- {place}:end -->\n" for place in places)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(systems, "SYSTEMS", TINY)
        patch.setattr(typer, "echo", lambda text, err=False: said.append(text))
        for _ in range(2):
            said.append("start")
            with pytest.raises(typer.Exit) as ended:
                run_command(folder)
    again = said[len(said) - said[::-1].index("start") :]
    return {"folder": folder, "code": ended.value.exit_code, "again": again}


def run_command(folder: Path, measure: bool = True) -> None:
    systems.main(
        str(folder / "dense"),
        str(folder / "calibration.txt"),
        str(folder / "evaluation.txt"),
        folder / "work",
        folder / "records",
        sizes="0.3",
        ours="",
        calibration_windows=4,
        evaluation_windows=3,
        window=64,
        measure=measure,
        rounds=2,
        together=1,
        threads=1,
        front=folder / "front.md",
        details=folder / "page.md",
        image=folder / "plot.svg",
    )


@pytest.mark.slow
def test_a_row_that_fails_says_why_and_the_others_are_there(finished: dict[str, Any]) -> None:
    assert finished["code"] == 1
    assert finished["again"][-1] == "Failed: Absent, 30 %."
    page = (finished["folder"] / "page.md").read_text(encoding="utf-8")
    assert "| 30 % | Absent | failed: absent-0.3: There is no method 'absent'." in page
    for start in (
        "| – | dense |",
        "| 30 % | CFSP | of channels |",
        "| 30 % | Trimline |",
        "| 2:4 | CFSP | 2 zeros in every 4 weights | 50.0 % zeros",
        "| 30 % | Wanda | zeros among the linears' weights, wherever they lie |",
    ):
        assert start in page


@pytest.mark.slow
def test_rows_hold_what_was_measured(finished: dict[str, Any]) -> None:
    rows = {path.stem: json.loads(path.read_text()) for path in (finished["folder"] / "records").glob("*.json")}
    assert set(rows) == {"dense", "cfsp-0.3", "cfsp-2to4", "trimline-0.3", "wanda-0.3"}
    for name, row in rows.items():
        assert len(row["perplexity"]["window_losses"]) == 3
        assert (row["cost"] is None) == (name == "dense")
        assert len(row["shape"]["blocks"]) == len(rows["dense"]["shape"]["blocks"])
        assert row["flags"] == processor_flags()
    assert rows["cfsp-0.3"]["parameters"] < rows["dense"]["parameters"] == rows["cfsp-2to4"]["parameters"]
    assert rows["wanda-0.3"]["zeros"] == pytest.approx(0.3, abs=0.01)
    assert abs(rows["cfsp-0.3"]["removed"]["decoder_parameters"] - 0.3) < 0.05
    assert rows["cfsp-2to4"]["zeros"] >= 0.5


@pytest.mark.slow
def test_the_second_run_measures_only_what_failed(finished: dict[str, Any]) -> None:
    assert [text for text in finished["again"] if text.endswith("…")] == ["Absent, 30 % …"]
    assert len(list((finished["folder"] / "records" / "timed").glob("*.json"))) == 4  # two models, one at a time, twice


@pytest.mark.slow
def test_what_is_recorded_is_shown_without_measuring(finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said = finished["folder"], []
    monkeypatch.setattr(systems, "SYSTEMS", TINY)
    monkeypatch.setattr(typer, "echo", lambda text, err=False: said.append(text))
    run_command(folder, measure=False)  # what is not measured yet is no failure
    assert not any(text.endswith("…") for text in said)
    assert "| 30 % | Absent | not measured yet |" in (folder / "page.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_front_page_has_few_rows(finished: dict[str, Any]) -> None:
    front, page = ((finished["folder"] / f"{name}.md").read_text(encoding="utf-8") for name in ("front", "page"))
    rows = [line for line in front.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["system", "dense", "CFSP", "Trimline"]
    cells = next(line for line in page.splitlines() if line.startswith("| 30 % | CFSP")).split("|")
    assert rows[2].split("|")[2:5] == cells[5:8], "parameters, perplexity and its ratio are those of the whole table"
    assert "](plot.svg)" in front


@pytest.mark.slow
def test_page_plot_and_verdicts_are_written(finished: dict[str, Any]) -> None:
    folder = finished["folder"]
    page = (folder / "page.md").read_text(encoding="utf-8")
    assert "](plot.svg)" in page
    assert "same shapes" in page
    assert str(folder) not in page
    assert "| CFSP, 30 % |" in page
    assert "not resolved" in page  # two rounds resolve nothing
    assert "With as many weights" in page
    assert "| processor | " in page
    ET.parse(folder / "plot.svg")


def test_unknown_systems_and_sizes_are_refused(tmp_path: Path) -> None:
    for wrong in ({"only": ["wandb"]}, {"sizes": "0.2;0.3"}, {"ours": "1.5"}, {"dtype": "int3"}):
        with pytest.raises(typer.Exit) as ended:
            systems.main("default", work=tmp_path / "work", **{"sizes": "0.2", "ours": "", "threads": 1} | wrong)
        assert ended.value.exit_code == 2
    assert not (tmp_path / "work").exists()


def test_a_shape_is_cut_exported_and_has_its_biases(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "dense", num_hidden_layers=3)
    reader = FAMILIES["llama"].reader(Sublayer.FFN).name
    shape = {"blocks": [[16, 0], [32, 1]], "biases": [reader]}
    out = tmp_path / "onnx"
    out.mkdir()
    export_shape(source, shape, RunOptions(threads=1), out)
    assert shape_of(Geometry.from_config(json.loads((out / "checkpoint_config.json").read_text()))) == shape
    updates = plan_of(Checkpoint(source).geometry, shape).updates
    assert len(updates) == 2
    assert all((bias != 0).all() for bias in updates.values())


def test_the_last_units_are_cut_where_the_first_make_a_model_that_no_gate_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_model("llama", tmp_path / "dense", num_hidden_layers=2)
    shape = {"blocks": [[16, 1], [32, 2]], "biases": []}
    out = tmp_path / "onnx"
    out.mkdir()
    tried: list[torch.Tensor] = []

    def refuse(model: Path, *_: Any) -> None:
        assert list(out.iterdir()) == []
        tried.append(Checkpoint(model).tensor("model.layers.0.mlp.up_proj.weight"))
        (out / "graph").touch()
        if len(tried) == 1:
            raise GateError("Logits differ.", "Report it.")

    monkeypatch.setattr(systems_shapes, "export", refuse)
    export_shape(source, shape, RunOptions(threads=1), out)
    whole = Checkpoint(source).tensor("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(tried[0], whole[:16])
    assert torch.equal(tried[1], whole[-16:])


def test_rows_of_one_shape_are_timed_once() -> None:
    shape = {"blocks": [[16, 1]], "biases": []}
    rows = [{"name": name, "system": name, "shape": shape} for name in ("laco", "shortgpt")]
    found = of_rows(Speeds({digest(shape)[:12]: compared(1.2)}), rows)
    assert found.rows == {"laco": compared(1.2), "shortgpt": compared(1.2)}
    broken = of_rows(Speeds(failures={digest(shape)[:12]: "a sentence"}), rows)
    assert broken.why("laco") == {"untimed": "a sentence"}
    assert [is_timed(row) for row in ({"system": "dense", "shape": shape}, {"system": "x", "shape": shape, "zeros": 0.5}, rows[0])] == [
        False,
        False,
        True,
    ]


def test_shapes_are_timed_again_for_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of which the second does not agree with itself."""
    setting = Setting(
        tmp_path, tmp_path, {"model": "m"}, *(CalibrationWindows(), EvaluateSlice(), RunOptions(threads=1)), tmp_path, tmp_path
    )
    shapes = {name: {"blocks": [[number, 1]], "biases": []} for number, name in enumerate("abc")}
    asked: list[list[str]] = []

    def measured(batch: dict[str, Any], *_: Any) -> Results:
        asked.append(sorted(batch))
        holds = len(asked) != 2
        judged = [comparison_record("a", load, phase, control_holds=holds) for phase, load in systems_speed.WORKLOADS.items()]
        samples = {name: {"prefill": [1.0, 1.0], "gaps": [[1.0], [1.0]]} for name in ("dense", *batch)}
        by_workload = dict.fromkeys(systems_speed.WORKLOADS.values(), samples)
        return results(recipe, by_workload, comparisons=judged, recipe_hash=str(len(asked)))

    monkeypatch.setattr(systems_speed, "_measured", measured)
    recipe = BenchmarkSlice()
    once = TimingPlan(recipe, runs=1)
    first = time_shapes([{"a": shapes["a"]}], setting, once)
    both = time_shapes([shapes], setting, once)
    assert asked == [["a"], ["a", "b", "c"]]
    assert both.rows["a"] == first.rows["a"]  # the other run does not hold
    assert [run.recipe_hash for run in both.runs] == ["1", "2"]
    assert not both.rows["b"]["decode"].control_holds
    assert time_shapes([shapes], setting, once).rows == both.rows
    better = time_shapes([shapes], setting, replace(once, again=True))
    assert asked[2:] == [["a", "b", "c"]]
    assert better.rows["b"]["decode"].control_holds
    assert set(time_shapes([shapes], setting, TimingPlan(BenchmarkSlice(rounds=30), new=False)).rows) == set()
    assert len(asked) == 3
    assert better.rows["a"]["decode"].speedup.rounds == 4
    assert time_shapes([shapes], setting, TimingPlan(recipe)).rows == better.rows
    assert len(asked) == 3  # all are in two runs already
    assert set(time_shapes([shapes | {"d": {"blocks": [[9, 1]], "biases": []}}], setting, once).rows) == set("abcd")
    assert asked[3:] == [["a", "b", "c", "d"]]


def test_shapes_of_one_size_are_timed_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows at two sizes, of which one has the shape of another, and two further ones of ours."""
    rows = [("cfsp", 1), ("flap", 2), (OURS, 3), (OURS_FFN, 4), ("cfsp", 5), ("flap", 2), (OURS, 6)]
    records = [{"name": f"{n}", "system": system, "shape": {"blocks": [[ffn, 1]], "biases": []}} for n, (system, ffn) in enumerate(rows)]
    setting = Setting(
        tmp_path, tmp_path, {"model": "m"}, *(CalibrationWindows(), EvaluateSlice(), RunOptions(threads=1)), tmp_path, tmp_path
    )
    asked: list[list[int]] = []

    def measured(batch: dict[str, Any], *_: Any) -> Results:
        asked.append([shape["blocks"][0][0] for shape in batch.values()])
        raise TrimlineError("No room.", "Make some.")

    monkeypatch.setattr(systems_speed, "_measured", measured)
    assert set(timings(records, setting, TimingPlan(BenchmarkSlice(), together=3)).failures) == set("0123456")
    assert asked == [[1, 2, 3], [4], [5, 6]]  # what failed is not tried a second time


def test_sentences_for_pages_name_no_place_on_this_machine(tmp_path: Path) -> None:
    nothing = CalibrationWindows(), EvaluateSlice(), RunOptions()
    setting = Setting(tmp_path / "dense", tmp_path / "work" / "text", {}, *nothing, tmp_path / "work", tmp_path / "records")
    partial, dense = tmp_path / "work" / "rows" / "x-1" / ".partial-onnx", tmp_path / "dense" / "model.safetensors"
    text = f"{partial} (torch) is not {dense}: 1."
    assert without_paths(text, setting) == "work (torch) is not dense: 1."


def test_no_two_systems_share_a_name() -> None:
    assert len({system.name for system in SYSTEMS}) == len({system.title for system in SYSTEMS}) == len(SYSTEMS)
    assert all(isinstance(system.sparse, PruneStep) or system.smaller for system in systems_list.SYSTEMS)
