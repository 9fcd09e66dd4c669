"""GGUF files in llama.cpp, through llama-cpp-python, as one more decoder that the benchmark times: one row at a time.

Optional: llama-cpp-python is no dependency, since its build takes a quarter of an hour.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from benchmarks.runtimes.names import GGUF
from pipeline.common.errors import TrimlineError

CONTEXT = 1024  # tokens, where it is not said what will be timed


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python can be imported."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaDecoder:
    """The file of a folder in llama.cpp.

    Args:
        folder: holds model.gguf.
        threads: for prompts and for steps.
        every_position: logits of all positions, for perplexity.
        context: tokens that fit, prompt and steps together.
    """

    def __init__(self, folder: Path, threads: int, every_position: bool = False, context: int = CONTEXT) -> None:
        self._context = context
        llama: Any = importlib.import_module("llama_cpp")
        self._model = llama.Llama(
            str(folder / GGUF),
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            n_threads=threads or os.cpu_count(),
            n_threads_batch=threads or os.cpu_count(),
            logits_all=every_position,
            verbose=False,
        )

    def empty(self, batch: int, capacity: int) -> None:
        """Forgets what was read.

        Raises:
            TrimlineError: several rows, or more tokens than fit.
        """
        if batch != 1:
            raise TrimlineError(f"llama.cpp is timed with one row, and {batch} were asked for.", "Use workloads of batch 1.")
        if capacity > self._context:
            raise TrimlineError(
                f"llama.cpp was opened for {self._context} tokens, and {capacity} were asked for.", "Use a shorter prompt or output."
            )
        self._model.reset()

    def run(self, ids: NDArray[np.int64], past: None) -> tuple[None, None]:
        """Reads more tokens, (1, tokens); the cache is the model's own."""
        self._model.eval(ids[0].tolist())
        return None, None

    def losses(self, windows: torch.Tensor) -> list[float]:
        """Mean cross-entropy of each window, nats per predicted token."""
        found = []
        for window in windows:
            self._model.reset()
            self._model.eval(window.tolist())
            logits = torch.from_numpy(self._model.scores[: len(window) - 1].copy())
            found.append(cross_entropy(logits, window[1:]).item())
        return found


NO_LLAMA_CPP = "llama-cpp-python is not installed"


def demand_llama_cpp() -> None:
    """Of llama.cpp: its Python package, in this environment.

    Raises:
        TrimlineError: it cannot be imported.
    """
    try:
        importlib.import_module("llama_cpp")
    except ImportError as error:
        raise TrimlineError(f"A GGUF file is to be timed and {NO_LLAMA_CPP} ({error}).", "Run pip install llama-cpp-python.") from error
