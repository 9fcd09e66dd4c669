from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.studies.cfsp.cost import cost
from benchmarks.studies.cfsp.variants import ALL, OURS, compare, step_of, table
from benchmarks.studies.figures import DOCS, README, quickstart_table
from benchmarks.studies.pages import fill, markdown_table
from pipeline.architecture.geometry import BlockShape
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.options import RunOptions
from pipeline.prune.recipe import PruneStep
from tests.tiny import VOCAB, tiny_model


def test_fill_replaces_only_its_place_and_can_be_repeated(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n<!-- y:begin --><!-- y:end -->\n")
    for text in ("new", "newer"):
        fill(page, "x", text)
    assert page.read_text() == "a\n<!-- x:begin -->\nnewer\n<!-- x:end -->\nb\n<!-- y:begin --><!-- y:end -->\n"
    with pytest.raises(TrimlineError, match="no place for z"):
        fill(page, "z", "text")


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_the_quickstart_table_is_the_first_of_the_report(tmp_path: Path) -> None:
    with pytest.raises(TrimlineError, match="no finished run"):
        quickstart_table(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "report.md").write_text("# t\n\n| a |\n| --- |\n| 1 |\n\n| other |\n")
    assert quickstart_table(tmp_path) == "| a |\n| --- |\n| 1 |"


def test_cost_is_a_ratio_of_processor_times(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tiny_model("llama", tmp_path, intermediate_size=256))
    found = cost(checkpoint, torch.randint(4, VOCAB, (4, 64)), torch.float32, rounds=1)
    assert found["tokens"] == 256
    for name, ratio in found["ratios"].items():
        assert ratio == pytest.approx(found["seconds"][name][0] / found["seconds"]["plain forward"][0])
        assert ratio > 0


def test_variants_are_all_valid_steps_and_each_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tiny_model("llama", tmp_path, intermediate_size=256))
    monkeypatch.setattr("benchmarks.studies.cfsp.variants.REMOVE", (0.5,))
    tokens = torch.randint(4, VOCAB, (4, 64))
    rows = compare(checkpoint, tokens, tokens, RunOptions(dtype="float32"), ALL)
    assert [row["variant"] for row in rows] == ["dense", *ALL]
    assert len({round(row["perplexity"], 6) for row in rows}) > 3
    assert "least squares" in table(rows)
    assert all(isinstance(step_of(variant, 0.3, checkpoint.geometry), PruneStep) for variant in ALL)
    assert OURS not in table([row for row in rows if row["variant"] != OURS])


def test_ours_is_asked_for_as_many_parameters_as_the_channels_have(tmp_path: Path) -> None:
    geometry = Checkpoint(tiny_model("llama", tmp_path)).geometry
    pooled = step_of(OURS, 0.5, geometry).pooled
    assert pooled is not None
    smaller = geometry.with_blocks(tuple(BlockShape(shape.ffn // 2, shape.kv_groups) for shape in geometry.blocks))
    assert (1 - pooled.remove) * geometry.decoder_parameters() == pytest.approx(smaller.decoder_parameters())


def test_make_bench_writes_into_pages_that_are_there() -> None:
    places = [
        (README, "quickstart"),
        (DOCS / "results.md", "realised-gain"),
        (DOCS / "cfsp.md", "cfsp-cost"),
        (DOCS / "cfsp.md", "cfsp-table"),
    ]
    assert [place for page, place in places if f"<!-- {place}:begin -->" not in page.read_text(encoding="utf-8")] == []
