"""What docs/results.md shows is kept in the repository, and the command goes on from there: no row is measured again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies.systems.__main__ import chosen, fractions, run_options
from benchmarks.studies.systems.measure import measured_row, prepare
from benchmarks.studies.systems.systems import rows_of
from pipeline.common.errors import TrimlineError
from pipeline.evaluate.recipe import EvaluateSlice
from pipeline.sources.model import default_gguf
from pipeline.sources.recipe import CalibrationWindows, TextSlice, TextSource

ROOT = Path(__file__).parents[4]
KEPT = ROOT / "benchmarks/studies/measured/systems"


@pytest.mark.slow
def test_no_row_is_measured_again(wikitext: Path, tmp_path: Path) -> None:
    try:
        default_gguf()
    except TrimlineError as error:
        pytest.skip(str(error))
    validation, test = (TextSource(source=str(wikitext / f"wikitext2-raw-{half}.txt")) for half in ("validation", "test"))
    windows = CalibrationWindows(windows=32, window=1024), EvaluateSlice(windows=24, window=1024)
    text = TextSlice(calibration=validation, evaluation=test)
    setting = prepare("default", text, *windows, run_options("float32", 1), tmp_path / "work", KEPT)
    rows = rows_of(chosen(None), fractions("0.2,0.3,0.5"), fractions("0.21,0.22,0.4,0.51,0.58"), True)
    found = {row.name: measured_row(row, setting, measure=False) for row in rows}
    assert len(found) > 40
    assert {name: record["failure"] for name, record in found.items() if "failure" in record} == {}
