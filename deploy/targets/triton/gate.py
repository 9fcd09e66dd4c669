"""The gate of the text model: its own files, run here on the packaged graph, against transformers' tokenizer and our session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deploy.targets.triton.backend.decoder import Decoder, generate
from deploy.targets.triton.backend.replies import Reader, Reply, Wish
from exporters.onnx.running.session import OnnxDecoder
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions

TEXTS = ("The capital of France is", "a", "Naïve façades: 12 €, \n\ttabs — and “quotes”. 日本語 🙂", "  two  spaces  ")
TOKENS = 16


def gate_text_model(onnx: Path, options: RunOptions, events: Events) -> None:
    """Whether the backend reads texts as transformers does, and continues several together as each alone.

    Raises:
        GateError: it does not.
        TrimlineError: the backend cannot open the folder.
    """
    tokenizer, theirs = Tokenizer.from_file(str(onnx / "tokenizer.json")), AutoTokenizer.from_pretrained(onnx)
    decoder = _opened(onnx, options)
    reader = Reader(tokenizer, decoder.context)  # from here on the tokenizer cuts nothing off
    for text in TEXTS:
        ours, wanted = tokenizer.encode(text).ids, theirs(text)["input_ids"]
        if ours != wanted:
            raise GateError(
                f"Triton's backend reads {text!r} as tokens {ours[:8]}…, and transformers as {wanted[:8]}….",
                "Save the tokenizer anew: AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            )
    replies = _together(decoder, reader, tokenizer)
    del decoder
    alone = OnnxDecoder(onnx, options.threads)
    for reply in replies:
        wanted_ids = alone.greedy(np.asarray([reply.wish.ids], np.int64), reply.wish.max_tokens)[0].tolist()
        if reply.tokens != wanted_ids and not _tied(alone, reply, wanted_ids):
            raise GateError(f"Triton's backend continues {reply.wish.ids[:8]}… by {reply.tokens}, and alone it is {wanted_ids}.")
    events.gate(f"Triton's text model: {len(replies)} texts together as each alone")


def _opened(onnx: Path, options: RunOptions) -> Decoder:
    try:
        return Decoder(onnx, options.threads)
    except RuntimeError as error:
        raise TrimlineError(str(error), "Serve it with another target, or export it in fp32 or fp16.") from error


def _together(decoder: Decoder, reader: Reader, tokenizer: Tokenizer) -> list[Reply]:
    wishes = [reader.wish(text.encode(), min(TOKENS - at, decoder.context // 4)) for at, text in enumerate(TEXTS)]
    replies = [Reply(wish, tokenizer, frozenset()) for wish in wishes]
    for _ in generate(decoder, replies):
        pass
    return replies


def _tied(alone: OnnxDecoder, reply: Reply, wanted: list[int]) -> bool:
    """Whether the first difference is between two tokens whose logits are closer than rounding is."""
    at = next(place for place, pair in enumerate(zip(reply.tokens, wanted, strict=True)) if pair[0] != pair[1])
    wish: Wish = reply.wish
    logits = alone.logits(np.asarray([[*wish.ids, *wanted[:at]]], np.int64))[0, -1]
    return abs(float(logits[reply.tokens[at]] - logits[wanted[at]])) <= 2e-3 * max(1.0, float(np.abs(logits).max()))
