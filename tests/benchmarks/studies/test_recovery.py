"""The studies of recovery, whole, on a tiny model."""

from __future__ import annotations

import pytest

from benchmarks.studies.recovery import reach, speed, sweep
from pipeline.common.files import read_json
from tests.end_to_end.scenario import prose
from tests.tiny import tiny_model


@pytest.fixture
def made(tmp_path):
    """A dense model and three texts."""
    tiny_model("llama", tmp_path / "dense")
    for number in (1, 2, 3):
        (tmp_path / f"{number}.txt").write_text(prose(number, 60), encoding="utf-8")
    return tmp_path


def test_reach_prunes_trains_and_judges_and_does_nothing_twice(made, monkeypatch, capsys):
    monkeypatch.setattr(reach, "JUDGES", {"near": 3, "far": 2})
    monkeypatch.setattr(reach, "fetch", lambda folder: made / "2.txt")
    sizes = {"calibration_windows": 4, "window": 32, "train_window": 24, "steps": 3, "batch": 2, "brown_share": 1.0, "threads": 1}
    asked = sizes | {"method": "magnitude", "model": str(made / "dense"), "work": made / "work", "record": made / "row.json", "remove": 0.3}
    asked |= {"rate": 1e-3, "kind": "full", "pruned": None}
    monkeypatch.setattr(reach, "TILE", 8)
    reach.main(made / "1.txt", made / "3.txt", **asked)
    said, row = capsys.readouterr().out, read_json(made / "row.json")
    assert row["training"]["tokens"] == 3 * 2 * 24
    assert row["seconds"]["training"] > 0
    for text in ("near", "far"):
        dense, recovered = (row["figures"][of][text] for of in ("dense", "recovered"))
        assert "divergence" not in dense
        assert recovered["divergence"] > 0
        assert f"{recovered['perplexity']:.2f}, ÷ dense" in said
    assert len(row["figures"]["dense"]["near"]["window_losses"]) == 3
    monkeypatch.setattr(reach, "recover", None)
    reach.main(made / "1.txt", made / "3.txt", **asked)
    assert read_json(made / "row.json")["figures"] == row["figures"]


def test_a_sweep_has_a_row_per_setting(made, capsys):
    names = ["full, 2e-4", "LoRA 16, 2e-3"]
    place = {"dense": str(made / "dense"), "work": made / "work", "record": made / "sweep.json", "only": names}
    sweep.main(made / "dense", str(made / "1.txt"), str(made / "3.txt"), steps=2, batch=1, window=24, windows=2, judged_window=24, **place)
    rows = read_json(made / "sweep.json")["rows"]
    assert list(rows) == names
    assert all(len(row["changes"]) == 2 for row in rows.values())
    said = capsys.readouterr().out
    assert all(name in said for name in names)


def test_speed_counts_reading_and_peaks():
    runs = [
        {"steps": [2.0, 4.0, 2.0], "read": 3.0, "windows read": 6, "peak": 5, "anonymous": 3},
        {"steps": [2.0], "read": 0, "windows read": 0, "peak": 7, "anonymous": 2},
    ]
    assert speed.summed(runs, 1024, 512) == {"again": 512.0, "first": 1024 / 3.0, "peak": 7, "anonymous": 3}
