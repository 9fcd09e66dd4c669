"""Tokenizers that llama.cpp has under a name of its own, and those that it has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from exporters.gguf.metadata import title
from exporters.gguf.tokenizer import pre_tokenizer, strips_like_phi3, write_tokenizer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from tests.exporters.models import stock

TEXT = "In 1847 the ship's boy counted 12 gulls and 305 nets; the captain wasn't amused by the boy or by the nets. "
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(*before: Any, regex: bool = True, merges: bool = True, **model: Any) -> Tokenizer:
    """A byte-level BPE trained on a sentence, or one without merges."""
    tokenizer = Tokenizer(BPE(**model))
    steps = [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if before else steps[0]
    trainer = BpeTrainer(
        vocab_size=300 if merges else 1, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT * 4] if merges else [], trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """What a converted SentencePiece BPE looks like: a fallback to bytes, ▁ for spaces, one in front."""
    letters = sorted(set("▁inthesaboyc"))
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("t", "he"),
        ("h", "e"),
        ("▁", "the"),
        ("▁t", "he"),
        ("▁th", "e"),
        ("▁", "th"),
        ("▁t", "h"),
        ("▁", "t"),
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    for left, right in merges:
        if left + right not in tokens:
            tokens.append(left + right)
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def saved(folder: Path, tokenizer: Tokenizer, rows: int = 600, **special: str) -> Checkpoint:
    checkpoint = stock("llama", folder, vocab_size=rows)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(checkpoint)
    return Checkpoint(checkpoint)


def written(source: Checkpoint, path: Path) -> gguf.GGUFReader:
    writer = gguf.GGUFWriter(path, "llama")
    write_tokenizer(writer, source)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return gguf.GGUFReader(path)


def key(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(f"tokenizer.{name}")
    return None if field is None else field.contents()


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (byte_level(), "gpt-2"),
        (byte_level(pre_tokenizers.Digits(individual_digits=True)), "smollm"),
        (byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), regex=False, ignore_merges=True), "llama-bpe"),
        (byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), regex=False), "smaug-bpe"),
        (byte_level(pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), regex=False), "qwen2"),
        (byte_level(pre_tokenizers.Punctuation(), merges=False), "gpt-2"),  # nothing is merged, so any splitting will do
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "no merges"],
)
def test_names_of_pre_tokenizers(tokenizer: Tokenizer, name: str) -> None:
    assert pre_tokenizer(json.loads(tokenizer.to_str())) == name


def test_byte_level_keys(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    source = saved(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>")
    (source.folder / "chat_template.jinja").write_text("{{ messages }}")
    reader = written(source, tmp_path / "t.gguf")
    assert (key(reader, "ggml.model"), key(reader, "ggml.pre")) == ("gpt2", "gpt-2")
    tokens, kinds, size = key(reader, "ggml.tokens"), key(reader, "ggml.token_type"), tokenizer.get_vocab_size()
    assert tokens[:size] == [tokenizer.id_to_token(number) for number in range(size)]
    assert tokens[size:] == [f"[PAD{number}]" for number in range(size, 600)]
    kind = gguf.TokenType
    assert kinds[:2] == [kind.CONTROL, kind.CONTROL]
    assert kinds[tokenizer.token_to_id("<tool>")] == kind.USER_DEFINED
    assert set(kinds[size:]) == {kind.UNUSED}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert key(reader, "ggml.merges") == [" ".join(pair) for pair in merges]
    assert len(merges) > 20
    assert (key(reader, "ggml.bos_token_id"), key(reader, "ggml.eos_token_id")) == (0, 1)
    assert (key(reader, "ggml.add_bos_token"), key(reader, "ggml.add_eos_token")) == (True, False)
    assert key(reader, "chat_template") == "{{ messages }}"


def test_sentencepiece_keys(tmp_path: Path) -> None:
    reader = written(saved(tmp_path, sentencepiece(), bos_token="<s>", unk_token="<unk>"), tmp_path / "t.gguf")
    assert (key(reader, "ggml.model"), key(reader, "ggml.add_space_prefix")) == ("llama", True)
    tokens, kinds, scores = (key(reader, f"ggml.{name}") for name in ("tokens", "token_type", "scores"))
    kind = gguf.TokenType
    assert kinds[0] == kind.UNKNOWN
    assert kinds[3 : 3 + 256] == [kind.BYTE] * 256
    by_token = dict(zip(tokens, scores, strict=True))
    assert by_token["th"] > by_token["the"] > by_token["he"] > by_token["▁the"] > by_token["▁th"] > by_token["▁t"]


def test_bpe_that_sentencepiece_would_merge_otherwise_is_refused(tmp_path: Path) -> None:
    data = json.loads(sentencepiece().to_str())
    data["model"]["merges"].remove(["t", "he"])
    with pytest.raises(TrimlineError, match="does not merge 't' and 'he' although it has 'the'"):
        written(saved(tmp_path, Tokenizer.from_str(json.dumps(data))), tmp_path / "t.gguf")


def lowercase() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def closing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lowercase(), "normalises text by Lowercase"),
        (byte_level(pre_tokenizers.Punctuation()), "splits text by"),
        (Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")), "of the kind WordPiece"),
        (Tokenizer(BPE({"a": 0, "b": 1}, [])), "neither works on bytes"),
        (closing(), r"puts the tokens \[\] before a text and \[0\] behind it"),
    ],
    ids=["lowercase", "punctuation", "wordpiece", "letters", "bos behind"],
)
def test_what_llama_cpp_would_split_otherwise_is_refused(tmp_path: Path, tokenizer: Tokenizer, message: str) -> None:
    with pytest.raises(TrimlineError, match=message):
        written(saved(tmp_path, tokenizer, bos_token="<s>"), tmp_path / "t.gguf")


def test_no_tokenizer_and_too_large_a_one(tmp_path: Path) -> None:
    source = saved(tmp_path, byte_level(), rows=100)
    with pytest.raises(TrimlineError, match=r"tokens that the model has no row for in its table of 100: 100 "):
        written(source, tmp_path / "t.gguf")
    (source.folder / "tokenizer.json").unlink()
    with pytest.raises(TrimlineError, match=r"has no tokenizer\.json"):
        written(source, tmp_path / "t.gguf")


@pytest.mark.parametrize("keeps", [True, False], ids=["like Phi-3", "otherwise"])
def test_special_tokens_that_swallow_spaces(tmp_path: Path, keeps: bool) -> None:
    """llama.cpp does that where the model's name holds phi-3 or phi3, for all special tokens but three."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<unk>", "<s>", "<|endoftext|>"] if keeps else ["<unk>", "<s>"])
    tokenizer.add_special_tokens([AddedToken("<|end|>", rstrip=True, special=True), AddedToken("</s>", rstrip=True, special=True)])
    source = saved(tmp_path, tokenizer, bos_token="<s>")
    if not keeps:
        with pytest.raises(TrimlineError, match="swallows the spaces"):
            strips_like_phi3(source.folder)
        return
    assert strips_like_phi3(source.folder)


def test_the_name_of_a_phi3_says_nothing_to_llama_cpp(tmp_path: Path) -> None:
    source = Checkpoint(stock("phi3", tmp_path))
    assert not strips_like_phi3(source.folder)
    assert not any(word in title(source.geometry).lower() for word in ("phi-3", "phi3"))
