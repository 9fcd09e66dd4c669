"""Losses by position, and answers that changed: against their definitions."""

from __future__ import annotations

import math
import re

import pytest
import torch

from pipeline.common.events import Events
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from pipeline.evaluate import retrieval
from pipeline.evaluate.chance import beats_chance, flips
from pipeline.evaluate.perplexity import evaluate, paged_readings
from pipeline.evaluate.positions import position_record, reading
from pipeline.evaluate.recipe import EvaluateSlice, RetrievalSlice
from pipeline.evaluate.retrieval import FIRST_NAMES, chosen, lengths, prompts, retrieval_record
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.sources.windows import consecutive_windows
from tests.end_to_end.scenario import prose
from tests.tiny import tiny_model

OPTIONS = RunOptions(dtype="float32", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model("llama", tmp_path_factory.mktemp("positions") / "model", num_hidden_layers=2, max_position_embeddings=1024)


def test_parts_are_means_over_eighths():
    logits, targets = torch.randn(19, 7), torch.arange(19) % 7
    found = reading(logits, targets)
    each = -logits.log_softmax(-1)[range(19), targets]
    assert found.loss == pytest.approx(each.mean().item(), rel=1e-6)
    places = [(0, 3), (3, 6), (6, 9), (9, 11), (11, 13), (13, 15), (15, 17), (17, 19)]
    assert found.parts == pytest.approx([each[start:end].mean().item() for start, end in places], rel=1e-6)
    assert reading(logits[:7], targets[:7]).parts == ()
    assert position_record([reading(logits[:7], targets[:7])]) == {}


def test_the_evaluation_keeps_them_for_every_window_and_a_paged_model_has_the_same(folder, tmp_path):
    (tmp_path / "evaluation.txt").write_text(prose(2, 30), encoding="utf-8")
    (tmp_path / "out").mkdir()
    evaluate(folder, tmp_path, EvaluateSlice(windows=3, window=33), OPTIONS, tmp_path / "out", Events())
    record = read_json(tmp_path / "out" / "perplexity.json")
    found = record["texts"][0]["position_losses"]
    assert [len(parts) for parts in found] == [8, 8, 8]
    assert [sum(parts) / 8 for parts in found] == pytest.approx(record["window_losses"], rel=1e-5)
    assert "position_losses" not in record
    from pipeline.checkpoints.checkpoint import Checkpoint

    model, family = load_model(folder), Checkpoint(folder).geometry.family
    windows = consecutive_windows(load_tokenizer(folder), (tmp_path / "evaluation.txt").read_text(encoding="utf-8"), 3, 33)
    assert [list(one.parts) for one in paged_readings(model, family, windows, Events())] == [pytest.approx(parts) for parts in found]


def test_lengths_double_up_to_what_holds():
    assert lengths(2048, RetrievalSlice()) == [256, 512, 1024, 2048]
    assert lengths(2048, RetrievalSlice(longest=1500)) == [256, 512, 1024]
    assert lengths(0, RetrievalSlice())[-1] == 16_384
    assert lengths(128, RetrievalSlice()) == []


class Words:
    """A tokenizer whose tokens are words."""

    def __init__(self):
        self.known: dict[str, int] = {}

    def __call__(self, text, **_):
        return {"input_ids": [self.known.setdefault(word, len(self.known)) for word in re.findall(r"\w+|\S", text)]}

    def decode(self, tokens):
        names = list(self.known)
        return " ".join(names[token] for token in tokens.tolist())


def test_a_text_holds_eight_people_and_asks_for_one():
    tokenizer = Words()
    made = list(prompts(tokenizer, 700, 9))
    assert [prompt.answer for prompt in made] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    for prompt in made:
        assert 680 < len(prompt.tokens) <= 700
        assert len(set(prompt.choices)) == 8
        text = tokenizer.decode(prompt.tokens)
        asked = text.rsplit(" ", 1)[1]
        assert asked in FIRST_NAMES
        assert text.count(f"met {asked} ") == 1
        assert text.count("On the way we met") == 8
    assert not torch.equal(made[0].tokens, made[8].tokens)
    assert torch.equal(made[3].tokens, list(prompts(tokenizer, 700, 8))[3].tokens)
    assert [prompt.answer for prompt in prompts(tokenizer, 700, 4)] == [0, 2, 4, 6]
    assert list(prompts(tokenizer, 64, 2)) == []


class Copier(torch.nn.Module):
    """Says what stood behind the last token when that occurred before: what the probe asks for."""

    def __init__(self, vocabulary: int, reach: int) -> None:
        super().__init__()
        self.size, self.reach = vocabulary, reach
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, use_cache=False):
        ids = input_ids[0].tolist()
        logits = torch.zeros(1, len(ids), self.size)
        from types import SimpleNamespace

        for place in range(max(0, len(ids) - self.reach), len(ids) - 1):
            if ids[place] == ids[-1]:
                logits[0, -1, ids[place + 1]] = 1.0
        return SimpleNamespace(logits=logits)


def test_a_model_that_copies_finds_all_and_one_that_forgets_does_not():
    tokenizer = Words()
    whole = retrieval_record(Copier(1000, 10_000), tokenizer, 1024, RetrievalSlice(prompts=8), Events())
    assert [row["length"] for row in whole["lengths"]] == [256, 512, 1024]
    assert all(row["chosen"] == row["right"] == list(range(8)) for row in whole["lengths"])
    short = retrieval_record(Copier(1000, 300), tokenizer, 1024, RetrievalSlice(prompts=8), Events())
    assert short["lengths"][0]["chosen"] == short["lengths"][0]["right"]
    assert sum(a == b for a, b in zip(short["lengths"][2]["chosen"], range(8), strict=True)) <= 4


def test_the_evaluation_asks_where_the_recipe_says_so(folder, tmp_path, monkeypatch):
    (tmp_path / "evaluation.txt").write_text(prose(2, 30), encoding="utf-8")
    asked = EvaluateSlice(windows=2, window=33, retrieval=RetrievalSlice(prompts=2, longest=512))
    said: list[str] = []
    for name in ("characters", "words"):
        (tmp_path / name).mkdir()
        evaluate(folder, tmp_path, asked, OPTIONS, tmp_path / name, Events(lambda event: said.append(event.text)))
        found = read_json(tmp_path / name / "retrieval.json")["lengths"]
        if name == "characters":  # this tokenizer begins every word with the same token
            assert found == []
            assert any("no text of 512 tokens" in text for text in said)
        monkeypatch.setattr(retrieval, "_first", lambda tokenizer, surname: 4 + sum(map(ord, surname)) % 97)
        monkeypatch.setattr(retrieval, "_text", lambda tokenizer, people, filler, asked, sentences: torch.arange(sentences + 9) % 97 + 4)
    assert [len(row["chosen"]) for row in found] == [2, 2]
    model, prompt = load_model(folder), next(prompts(None, 512, 1))
    logits = model(prompt.tokens[None]).logits[0, -1]
    assert chosen(model, prompt) == max(range(8), key=lambda one: logits[prompt.choices[one]]) == found[1]["chosen"][0]


def test_flips_and_their_exact_test():
    before, after = [1.0] * 10 + [0.0] * 5, [0.0] * 8 + [1.0] * 2 + [1.0] + [0.0] * 4
    found = flips(before, after)
    assert (found.lost, found.gained) == (8, 1)
    assert found.p == pytest.approx(2 * sum(math.comb(9, k) for k in (0, 1)) / 2**9)
    assert flips([1.0, 0.0], [1.0, 0.0]).p == 1.0
    with pytest.raises(ValueError, match="zip"):
        flips([1.0], [1.0, 0.0])


def test_chance_is_beaten_by_three_standard_errors_of_guessing():
    assert beats_chance(69, 200, 0.25)  # 0.25 + 3 · sqrt(0.25 · 0.75 / 200) = 0.342
    assert not beats_chance(68, 200, 0.25)
    assert not beats_chance(3, 4, 0.5)
    assert not beats_chance(0, 0, 0.25)
