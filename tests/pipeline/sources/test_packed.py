"""Windows of several texts: by share, end to end, nothing twice before all of it was read."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pipeline.common.errors import TrimlineError
from pipeline.common.files import write_json
from pipeline.live.loading import load_tokenizer
from pipeline.sources.packed import by_share, calibration_windows, packed_windows
from pipeline.sources.recipe import CalibrationWindows
from pipeline.sources.roles import SharedText
from pipeline.sources.windows import draw_windows
from tests.end_to_end.scenario import prose
from tests.tiny import tiny_model

LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_model("llama", tmp_path_factory.mktemp("packed")))


def shared(*shares: float) -> list[SharedText]:
    return [SharedText(f"text {number}", share, prose(number, 20)) for number, share in enumerate(shares, start=1)]


def rows_of(tokenizer, text: SharedText) -> list[tuple[int, ...]]:
    ids = tokenizer(text.text)["input_ids"]
    return [tuple(ids[at : at + LENGTH]) for at in range(0, len(ids) - LENGTH + 1, LENGTH)]


@pytest.mark.parametrize(
    ("shares", "count", "wanted"),
    [((1.0,), 7, (7,)), ((1.0, 1.0), 7, (4, 3)), ((3.0, 1.0), 8, (6, 2)), ((1.0, 1.0, 2.0), 3, (1, 1, 1)), ((5.0, 1.0), 0, (0, 0))],
)
def test_shares_are_whole_numbers_that_add_up(shares, count, wanted):
    found = by_share(shared(*shares), count)
    assert sum(found) == count
    assert found == wanted


def test_windows_come_by_share_and_none_twice(tokenizer):
    texts = shared(3.0, 1.0)
    drawn = packed_windows(tokenizer, texts, 8, LENGTH, 5, "test", apart=4)
    cut = [rows_of(tokenizer, text) for text in texts]
    read = [tuple(row) for row in drawn.windows[list(drawn.order)].tolist()]
    assert [sum(row in rows for row in read) for rows in cut] == [6, 2]
    assert len(set(read)) == 8
    assert [tuple(row) for row in drawn.apart.tolist()] == cut[0][-3:] + cut[1][-1:]
    assert not set(read) & {tuple(row) for row in drawn.apart.tolist()}
    again = packed_windows(tokenizer, texts, 8, LENGTH, 5, "test", apart=4)
    assert torch.equal(again.windows, drawn.windows)
    assert again.order == drawn.order
    assert packed_windows(tokenizer, texts, 8, LENGTH, 6, "test", apart=4).order != drawn.order


def test_a_text_that_is_used_up_is_read_again_evenly(tokenizer):
    texts = shared(9.0, 1.0)
    there = len(rows_of(tokenizer, texts[0]))
    drawn = packed_windows(tokenizer, texts, 10 * there, LENGTH, 5, "test")
    times = Counter(drawn.order)
    first = [times[number] for number in range(there)]
    assert sum(first) == 9 * there == 9 * len(first)
    assert set(first) == {9}


def test_what_is_too_short_is_named(tokenizer):
    texts = shared(1.0, 1.0)
    with pytest.raises(TrimlineError, match=r"The test asks for 500 windows of 16 tokens = 8000; the text text 1 has \d+"):
        packed_windows(tokenizer, texts, 1000, LENGTH, 5, "test", again=False)


def test_calibration_reads_one_text_as_before_and_several_by_share(tokenizer, tmp_path):
    texts = shared(1.0, 3.0)
    (tmp_path / "calibration.txt").write_text(texts[0].text, encoding="utf-8")
    recipe = CalibrationWindows(windows=4, window=LENGTH, seed=3)
    assert torch.equal(calibration_windows(tokenizer, tmp_path, recipe), draw_windows(tokenizer, texts[0].text, recipe))
    (tmp_path / "calibration-2.txt").write_text(texts[1].text, encoding="utf-8")
    write_json(tmp_path / "text.json", {"calibration": [{"name": text.name, "share": text.share} for text in texts]})
    found = [tuple(row) for row in calibration_windows(tokenizer, tmp_path, recipe).tolist()]
    assert [sum(row in rows_of(tokenizer, text) for row in found) for text in texts] == [1, 3]
    with pytest.raises(TrimlineError, match="there are several"):
        calibration_windows(tokenizer, tmp_path, CalibrationWindows(starts=(0, 5), window=LENGTH))
