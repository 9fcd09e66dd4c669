"""A tokenizer into a GGUF's keys. llama.cpp has its own tokenizers, so only what one of them does the same is written.

Byte-level BPE (GPT-2's kind) needs the name of a pre-tokenizer: llama.cpp knows regular expressions by the names of the
models that brought them. SentencePiece's kind (bytes as a fallback) needs scores, of which only the order counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from exporters.text.tokens import check_tokens
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.live.loading import load_tokenizer

REMEDY = "Serve it with another runtime, or convert its tokenizer to one that llama.cpp knows."
_CASED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CASED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CASED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# (regular expressions in order, whole words of the vocabulary are taken unmerged) to llama.cpp's name.
GPT2_REGEX = "gpt-2"  # what ByteLevel(use_regex=True) does
DIGITS = "digits"  # what Digits(individual_digits=True) does
PRE_TOKENIZERS = {
    ((GPT2_REGEX,), False): "gpt-2",
    ((DIGITS, GPT2_REGEX), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
}
PHI3_KEEPS = {"<unk>", "<s>", "<|endoftext|>"}  # special tokens of Phi-3 that leave spaces alone


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and llama.cpp's kind of each."""

    tokens: list[str]
    kinds: list[int]


def write_tokenizer(writer: gguf.GGUFWriter, source: Checkpoint) -> None:
    """Adds the tokenizer's keys, special tokens and chat template.

    Raises:
        TrimlineError: there is no tokenizer.json, it has tokens that the model does not know, or llama.cpp has no tokenizer that does the same.
    """
    data = _read(source.folder)
    model = data["model"]
    tokenizer = load_tokenizer(source.folder)
    check_tokens(tokenizer, source.geometry.vocab, source.folder)
    vocabulary = _vocabulary(data, source.geometry.vocab)
    byte_level = "ByteLevel" in _types(data.get("pre_tokenizer"))
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre(pre_tokenizer(data) if byte_level else "default")
    writer.add_token_list(vocabulary.tokens)
    if not byte_level:
        writer.add_token_scores(scores(vocabulary, _merges(model)))
    writer.add_token_types(vocabulary.kinds)
    if byte_level:
        # llama.cpp insists on merges. Symbols start as single letters, so this one is never applied.
        writer.add_token_merges([" ".join(pair) for pair in _merges(model)] or ["no-such-symbol no-such-symbol"])
    writer.add_add_space_prefix(not byte_level and _adds_space(data))
    _special(writer, tokenizer)


def strips_like_phi3(folder: Path) -> bool:
    """Whether special tokens swallow the spaces behind them, as llama.cpp has it for Phi-3 alone.

    Raises:
        TrimlineError: some do in another way, or swallow spaces before them.
    """
    added = {entry["content"]: entry for entry in _read(folder).get("added_tokens") or ()}
    stripping = {token for token, entry in added.items() if entry.get("rstrip") or entry.get("lstrip")}
    if not stripping:
        return False
    expected = {token for token, entry in added.items() if entry["special"]} - PHI3_KEEPS
    if stripping != expected or PHI3_KEEPS - set(added) or any(entry.get("lstrip") for entry in added.values()):
        raise _unknown(f"its token {min(stripping)} swallows the spaces beside it")
    return True


def pre_tokenizer(data: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json splits text before merging.

    Raises:
        TrimlineError: it splits in a way that has no name there.
    """
    normaliser = _types(data.get("normalizer"))
    if normaliser - {"NFC"}:
        raise _unknown(f"it normalises text by {', '.join(sorted(normaliser))}")
    if not data["model"]["merges"]:
        return "gpt-2"  # nothing is ever merged, so it does not matter where text is split
    parts = _steps(data.get("pre_tokenizer"))
    steps = tuple(found for part in parts if (found := _step(part)) is not None)
    name = PRE_TOKENIZERS.get((steps, bool(data["model"].get("ignore_merges"))))
    if name is None:
        raise _unknown(f"it splits text by {json.dumps(data.get('pre_tokenizer'), ensure_ascii=False)[:200]}")
    return name


def scores(vocabulary: Vocabulary, merges: list[tuple[str, str]]) -> list[float]:
    """SentencePiece's scores from the order of merges: the earlier, the higher.

    Raises:
        TrimlineError: two tokens side by side spell a third one without a merge; SentencePiece would join them all the same.
    """
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    plain = {token for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == gguf.TokenType.NORMAL}
    known = set(merges)
    for token in sorted(plain):
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in plain and right in plain and (left, right) not in known:
                raise _unknown(f"it does not merge {left!r} and {right!r} although it has {token!r}")
    return [-float(rank.get(token, 0)) for token in vocabulary.tokens]


def _special(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    for role, number in named.items():
        if number is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    before, after = _around(tokenizer)
    if before not in ([], [named["bos"]]) or after not in ([], [named["eos"]]):
        raise _unknown(f"it puts the tokens {before} before a text and {after} behind it")
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if template:
        writer.add_chat_template(template)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _vocabulary(data: Mapping[str, Any], rows: int) -> Vocabulary:
    added = {entry["id"]: entry for entry in data.get("added_tokens") or ()}
    found = {number: token for token, number in data["model"]["vocab"].items()} | {number: e["content"] for number, e in added.items()}
    fallback, unknown = bool(data["model"].get("byte_fallback")), data["model"].get("unk_token")
    tokens = [found.get(number, f"[PAD{number}]") for number in range(rows)]
    kinds = [_kind(number, found, added, fallback, unknown) for number in range(rows)]
    return Vocabulary(tokens, kinds)


def _kind(number: int, found: Mapping[int, str], added: Mapping[int, Any], fallback: bool, unknown: str | None) -> int:
    kind = gguf.TokenType
    if number not in found:
        return kind.UNUSED
    token = found[number]
    if fallback and len(token) == 6 and token.startswith("<0x"):
        return kind.BYTE
    if token == unknown and fallback:
        return kind.UNKNOWN
    if number in added:
        return kind.CONTROL if added[number]["special"] else kind.USER_DEFINED
    return kind.NORMAL


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TrimlineError(f"{folder} has no tokenizer.json, and llama.cpp takes text.", "Save its tokenizer into the folder first.")
    data = read_json(path)
    model = data.get("model") or {}
    if model.get("type") != "BPE":
        raise _unknown(f"it is of the kind {model.get('type')}, not BPE")
    if "ByteLevel" not in _types(data.get("pre_tokenizer")) and not model.get("byte_fallback"):
        raise _unknown("it neither works on bytes nor falls back to them")
    return data


def _adds_space(data: Mapping[str, Any]) -> bool:
    parts = [*_steps(data.get("normalizer"), "normalizers"), *_steps(data.get("pre_tokenizer"))]
    return any(part["type"] == "Prepend" or (part["type"] == "Metaspace" and part.get("prepend_scheme") != "never") for part in parts)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    split: Iterator[Sequence[str]] = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in split]


def _step(part: Mapping[str, Any]) -> str | None:
    kind = part["type"]
    if kind == "ByteLevel":
        return GPT2_REGEX if part.get("use_regex", True) else None
    if kind == "Digits" and part.get("individual_digits"):
        return DIGITS
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return str((part.get("pattern") or {}).get("Regex"))
    return json.dumps(part)


def _steps(part: Mapping[str, Any] | None, inner: str = "pretokenizers") -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return [step for entry in part[inner] for step in _steps(entry, inner)] if part["type"] == "Sequence" else [part]


def _types(part: Mapping[str, Any] | None) -> set[str]:
    inner = "normalizers" if part and "normalizers" in part else "pretokenizers"
    return {step["type"] for step in _steps(part, inner)}


def _unknown(why: str) -> TrimlineError:
    return TrimlineError(f"llama.cpp has no tokenizer that does what this one does: {why}.", REMEDY)
