"""Lists of texts, from the recipe to the package: drawn by share, judged one by one, and said everywhere."""

from __future__ import annotations

from typing import Any

import pytest

import trimline as api
from pipeline.common.files import read_json
from tests.end_to_end.scenario import OPTIONS, prose, recipe
from trimline.comparisons.results import read_results
from trimline.comparisons.tables import _by_text
from trimline.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("quick_measuring")


@pytest.fixture
def values(inputs, tmp_path) -> dict[str, Any]:
    """The recipe with recovery, with two texts to calibrate, one to train, two to judge."""
    more = [tmp_path / f"text-{number}.txt" for number in (4, 5, 6)]
    for number, place in enumerate(more, start=4):
        place.write_text(prose(number, 40), encoding="utf-8")
    found = recipe("recovered", inputs)
    first, judge = found["text"]["calibration"], found["text"]["evaluation"]
    calibration = [{"source": first, "share": 3}, str(more[0])]
    found["text"] = {"calibration": calibration, "recovery": str(more[1]), "evaluation": [judge, str(more[2])]}
    return found


def test_several_texts_go_through_a_whole_run(values, tmp_path, quick_measuring):
    done = api.run(values, tmp_path / "out", options=OPTIONS)
    record = read_json(done.artefacts["text"].folder / "text.json")
    assert [len(record[role]) for role in ("calibration", "recovery", "evaluation")] == [2, 1, 2]
    assert len(record["pairs"]) == 6
    rows = done.report.by_text
    assert [row.name for row in rows] == [entry["name"] for entry in record["evaluation"]]
    assert rows[0].pruned.value == read_json(done.artefacts["evaluate pruned"].folder / "perplexity.json")["perplexity"]
    assert all(row.divergence is not None and row.divergence > 0 and 0 <= row.same_best <= 1 for row in rows)
    assert all(row.positions is not None and len(row.positions.pruned) == 8 for row in rows)
    for page in ("report.md", "README.md"):
        text = (done.package / page).read_text(encoding="utf-8")
        assert [row.name for row in rows if f"| {row.name} |" not in text] == []
    run = read_json(done.package / "run.json")
    assert [row["name"] for row in run["by_text"]] == [row.name for row in rows]
    assert run["recovery"]["held_out"]
    kept = parse_recipe((done.package / "recipe.yaml").read_text(encoding="utf-8")).text
    assert [text.share for text in kept.calibration] == [3.0, 1.0]
    ours = read_results([done.package, tmp_path / "out"])
    assert len(_by_text(ours).rows) == 4
