"""Windows of a text: where they begin."""

from __future__ import annotations

import torch
from tokenizers.processors import TemplateProcessing

from pipeline.sources.recipe import CalibrationWindows
from pipeline.sources.windows import consecutive_windows, draw_windows
from tests.tiny import tiny_tokenizer


def test_every_window_begins_as_the_tokenizer_begins_a_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "abcdefghijklmnopqrstuvwxyz" * 4
    recipe = CalibrationWindows(windows=3, window=8)
    bare = draw_windows(tokenizer, text, recipe), consecutive_windows(tokenizer, text, 3, 8)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> <s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    start = torch.tensor([[1, 1]] * 3)
    for windows in (draw_windows(tokenizer, text, recipe), consecutive_windows(tokenizer, text, 3, 8)):
        assert torch.equal(windows[:, :2], start)
        assert not torch.isin(windows[:, 2:], torch.tensor([1, 2])).any()
    published = draw_windows(tokenizer, text, CalibrationWindows(windows=3, window=8, begin=False))
    assert not torch.equal(published[:, :2], start)
    assert {tuple(window.shape) for window in bare} == {(3, 8)}
