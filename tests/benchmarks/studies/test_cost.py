"""The study of what pruning costs: a process of it, and its table."""

from __future__ import annotations

import pytest
import torch

from benchmarks.studies.cost.__main__ import BEFORE, NOW, ROOT, row, run_in, same_units, shortened, steps, tree_of
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from tests.tiny import VOCAB, tiny_model


def measured(seconds: float, forward: float, units: dict[str, list[int]], peak: int = 2**20) -> dict:
    return {"seconds": seconds, "forward": forward, "units": units, "peak": peak, "losses": [1.0, 3.0]}


def test_a_process_says_what_a_system_took_and_left(tmp_path) -> None:
    folder = shortened(tiny_model("llama", tmp_path / "whole"), 2, tmp_path / "short")
    assert len(Checkpoint(folder).geometry.blocks) == 2
    windows = torch.randint(4, VOCAB, (4, 16), generator=torch.Generator().manual_seed(0)).tolist()
    step = steps(0.5)["magnitude"][0] | {"round_to": 8}
    found = run_in(ROOT, {"model": str(folder), "windows": windows, "evaluation": windows[:2], "threads": 1, "step": step})
    whole = Checkpoint(folder).geometry.blocks[0]
    assert [len(found["units"][f"ffn.{block}"]) for block in range(2)] == [whole.ffn // 2] * 2
    assert [len(found["units"][f"attention.{block}"]) for block in range(2)] == [whole.kv_groups] * 2
    assert len(found["losses"]) == 2
    assert all(found[name] > 0 for name in ("forward", "seconds", "wall", "peak"))


def test_a_process_that_fails_says_why(tmp_path) -> None:
    with pytest.raises(TrimlineError, match="The measuring process failed"):
        run_in(ROOT, {"model": str(tmp_path), "windows": [[1, 2]], "evaluation": [], "threads": 1, "step": {}})


def test_ratios_are_of_the_same_round() -> None:
    found = {
        BEFORE: [measured(10, 1, {"ffn.0": [0, 1, 2]}), measured(40, 2, {"ffn.0": [0, 1, 2]}, 3 * 2**20)],
        NOW: [measured(5, 1, {"ffn.0": [0, 1, 3]}), measured(10, 2, {"ffn.0": [0, 1, 3]})],
    }
    cells = row("a system", 0.4, found)
    assert cells[:8] == ["a system", "15.00", "5.00", "0.38", "0.4", "reached", "3", "1"]
    assert cells[8:] == ["50.00 %", "7.389", "7.389"]
    assert row("a system", 0.3, found)[5] == "missed"


def test_units_are_the_same_where_both_keep_them() -> None:
    assert same_units({"ffn.0": [0, 1], "ffn.1": [2]}, {"ffn.0": [0, 1], "ffn.1": [2]}) == 1
    assert same_units({"ffn.0": [0], "ffn.1": [2]}, {"ffn.0": [1], "ffn.1": [2]}) == pytest.approx(1 / 3)


def test_a_commit_that_is_not_here_is_refused(tmp_path) -> None:
    with pytest.raises(TrimlineError, match="There is no commit nowhere-at-all here"):
        tree_of("nowhere-at-all", tmp_path)
    assert tree_of(str(tmp_path), tmp_path / "unused") == tmp_path
