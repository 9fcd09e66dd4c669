"""Everything that is computed has the bytes that it had when digests.json was written: on one thread, where the setting is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.prune.methods import METHODS
from tests.sameness import baseline
from tests.sameness.baseline import NoBaseline, kept, made_anew, write
from tests.sameness.computing import tiny_cases
from tests.sameness.digests import differences, folder_digests


@pytest.mark.parametrize("part", ["tiny", *(pytest.param(part, marks=pytest.mark.slow) for part in ("runs", "quickstart"))])
@pytest.mark.timeout(3600)
def test_what_is_computed_has_the_bytes_it_had(part: str) -> None:
    try:
        before = kept(part)
    except NoBaseline as nothing:
        pytest.skip(str(nothing))
    assert differences(before, made_anew(part)) == []


def test_every_method_has_a_case_for_each_of_its_spaces() -> None:
    registered = {(name, space.value) for name, method in METHODS.items() for space in method.spaces}
    stated = {(step["method"], space) for case in tiny_cases().values() for step in case["steps"] for space in _spaces(step)}
    assert registered - stated == set()


def _spaces(step: dict[str, Any]) -> list[str]:
    return list(step.get("budget", {})) or (step.get("pooled") or step["target"]).get("spaces", ["ffn", "kv_group"])


def test_every_changed_missing_and_new_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("same", "changed", "gone", "deep/run.json", "SHA256SUMS"):
        (tmp_path / name).write_text(name)
    before = folder_digests(tmp_path, "case")
    assert set(before) == {"case/same", "case/changed", "case/gone"}
    (tmp_path / "changed").write_text("otherwise")
    (tmp_path / "gone").rename(tmp_path / "deep" / "new")
    after = folder_digests(tmp_path, "case")
    assert differences(before, after) == ["case/changed differs.", "case/gone is not made any more.", "case/deep/new is new."]


def test_the_place_of_the_work_is_in_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("source.json").write_text(f'{{"folder": "{tmp_path}/{name}/model"}}')
        found.append(folder_digests(Path(), "case"))
    assert found[0] == found[1]


def test_measured_figures_are_in_no_digest_but_their_names_are(tmp_path: Path) -> None:
    documents = ({"rounds": [{"seconds": 1.5}]}, {"rounds": [{"seconds": 2.0}, {"seconds": None}]}, {"rounds": [{"time": 1.5}]})
    found = []
    for document in documents:
        (tmp_path / "results.json").write_text(json.dumps(document))
        found.append(folder_digests(tmp_path, "case"))
    assert found[0] == found[1] != found[2]


def test_settings_are_kept_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "digests.json"
    for processor in ("one", "other"):
        monkeypatch.setattr(baseline, "present_setting", lambda processor=processor: {"processor": processor})
        write("tiny", {"file": f"of {processor}"}, file)
    assert kept("tiny", file) == {"file": "of other"}
    write("runs", {"file": "of a run"}, file)
    assert (kept("tiny", file), kept("runs", file)) == ({"file": "of other"}, {"file": "of a run"})
    monkeypatch.setattr(baseline, "present_setting", lambda: {"processor": "third"})
    with pytest.raises(NoBaseline, match=r"processor third, kept: one.* --only tiny --write"):
        kept("tiny", file)
