"""A graph in ONNX Runtime, and texts that it continues: a prompt that is read in pieces, a cache that grows with the text.

onnxruntime-genai 0.18 is not used here. Where past and present share a buffer, it allocates and clears the cache for the whole
limit before the first token; where they do not, it copies the whole cache for every token (docs/serving.md has the figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.serve.compute.choosing import Chooser, Logits
from exporters.folder import GENAI_CONFIG
from exporters.onnx.running.device import fetch
from exporters.onnx.running.session import OnnxDecoder
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json

LEAST, MOST = 16, 128  # tokens of a prompt that are read in one go; between two pieces other texts go on, and commands are heard
WORK = 256e9  # multiplications and additions of one piece: some seconds on two cores
ROOM = 256  # tokens beyond the prompt that a cache has room for at first; it doubles when it is full


class Runtime:
    """A model, opened.

    Args:
        folder: an ONNX export with genai_config.json.
        threads: of ONNX Runtime inside an operator.

    Attributes:
        cache_bytes: of the cache, per token of a text.
        context: most tokens of a text.
        ends: tokens that end a text.
        piece: tokens of a prompt that are read in one go.
        penalty: of tokens that are repeated.

    Raises:
        TrimlineError: it cannot be opened.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        config = read_json(folder / GENAI_CONFIG)
        self.decoder = OnnxDecoder(folder, threads)
        self.cache_bytes = self.decoder.cache_bytes
        ends = config["model"].get("eos_token_id", [])
        self.context = int(config["model"]["context_length"])
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        sizes = config["model"]["decoder"]
        # A block has some 12 hidden² weights. The size follows from the model alone, so that equal requests get equal texts.
        operations = 24 * int(sizes["hidden_size"]) ** 2 * int(sizes["num_hidden_layers"])
        self.piece = min(MOST, max(LEAST, int(WORK / operations)))
        self.penalty = float(config.get("search", {}).get("repetition_penalty") or 1.0)

    def begin(self, prompt: Sequence[int], options: Mapping[str, Any]) -> Continuation:
        """A text that begins with this prompt.

        Args:
            prompt: token ids, at least one.
            options: search options; ``max_length`` counts prompt and answer.

        Raises:
            TrimlineError: the limit is beyond the model's positions.
        """
        if options["max_length"] > self.context:
            raise TrimlineError(
                f"Prompt and answer may have {options['max_length']:,} tokens, and the model has {self.context:,} positions.",
                "Lower max_tokens.",
            )
        return Continuation(self, prompt, options)


class Continuation:
    """One text that grows.

    Args:
        runtime: that computes it.
        prompt: token ids, at least one.
        options: search options of the request.

    Attributes:
        logits: the model's own, (vocabulary,), that the last token was chosen by.
    """

    def __init__(self, runtime: Runtime, prompt: Sequence[int], options: Mapping[str, Any]) -> None:
        self._runtime, self._unread, self._length = runtime, list(prompt), len(prompt)
        self._limit = int(options["max_length"])
        self._chooser = Chooser(options, prompt, runtime.ends, options.get("repetition_penalty", runtime.penalty))
        self._past: Any = None
        self.logits: Logits = np.zeros(0, np.float32)

    def step(self) -> tuple[int, bool] | None:
        """Reads what is unread, at most a piece of it, and chooses the next token where nothing is left to read.

        Returns:
            The token, and whether it is the last one; None while the prompt is being read.

        Raises:
            TrimlineError: there is no memory for the cache, or ONNX Runtime fails.
            ValueError: a logit is no number.
        """
        piece, self._unread = self._unread[: self._runtime.piece], self._unread[self._runtime.piece :]
        logits = self._read(piece)
        if self._unread:
            return None
        self.logits = logits
        token = self._chooser.choose(logits, self._length)
        self._unread, self._length = [token], self._length + 1
        return token, token in self._runtime.ends or self._length >= self._limit

    def _read(self, piece: list[int]) -> Logits:
        decoder = self._runtime.decoder
        try:
            if self._past is None:
                self._past = decoder.empty(1, min(self._limit, self._length + ROOM))
            logits, self._past = decoder.run(np.asarray([piece], np.int64), self._past)
            return fetch(logits)[0, -1].astype(np.float32)  # a copy: the next run may write to the same place
        except (MemoryError, TrimlineError) as error:
            if isinstance(error, TrimlineError) and "alloc" not in error.problem:
                raise
            size = self._length * self._runtime.cache_bytes / 2**20
            raise TrimlineError(
                f"There is no memory left for a text of {self._length:,} tokens, whose cache takes {size:,.0f} MiB.",
                "Ask for fewer tokens with max_tokens, or send a shorter prompt.",
            ) from error
