"""An OpenVINO folder in openvino-genai: what a user of the folder runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporters.openvino.runtime import GENAI, needs_openvino, refused
from exporters.openvino.session import DEVICE, EXACT

Backend = Literal["PA", "SDPA", "its own choice"]  # paged attention, which it chooses where it can, and the graph's own attention
MOST_TOKENS = 2**20  # of one step: a prompt is read in one piece


class GenaiPipeline:
    """A folder in openvino-genai's LLMPipeline.

    Args:
        folder: that the export wrote.
        threads: of the processor; 0: its own choice.
        backend: how it attends.
        exact: numbers as the checkpoint's, instead of what the device chooses for speed.

    Raises:
        TrimlineError: openvino-genai is missing, or cannot open the folder.
    """

    def __init__(self, folder: Path, threads: int = 0, backend: Backend = "PA", exact: bool = False) -> None:
        needs_openvino(GENAI)
        import openvino_genai

        self._genai = openvino_genai
        settings: dict[str, Any] = {} if backend == "its own choice" else {"ATTENTION_BACKEND": backend}
        settings |= EXACT if exact else {}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            self._pipeline = openvino_genai.LLMPipeline(str(folder), DEVICE, **settings)
        except Exception as error:  # they have no other base
            raise refused("openvino-genai", folder, error) from error

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The most likely tokens after a prompt of token ids; an end-of-text token does not stop it."""
        import openvino as ov

        config = self._genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        found = self._pipeline.generate(ov.Tensor(np.asarray([prompt], np.int64)), config)
        return [int(token) for token in found.tokens[0]]

    def settings(self) -> dict[str, Any]:
        """What it takes the folder to say of ending and sampling, under its own names."""
        config = self._pipeline.get_generation_config()
        return {
            name: getattr(config, name)
            for name in ("eos_token_id", "stop_token_ids", "temperature", "top_k", "top_p", "repetition_penalty")
        }


class GenaiSteps:
    """A folder in openvino-genai's ContinuousBatchingPipeline, which is what its LLMPipeline runs by default, one step at a time.

    A prefix that it has seen is never taken from its cache: a prompt that is timed twice would else cost nothing the second time.

    Args:
        folder: that the export wrote.
        threads: of the processor; 0: its own choice.

    Raises:
        TrimlineError: openvino-genai is missing, or cannot open the folder.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        needs_openvino(GENAI)
        import openvino as ov
        import openvino_genai

        self._ov, self._genai = ov, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = MOST_TOKENS
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        try:
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, DEVICE, settings)
        except Exception as error:  # they have no other base
            raise refused("openvino-genai", folder, error) from error
        self._handles: list[Any] = []
        self._requests = 0

    def empty(self, batch: int, capacity: int) -> dict[str, int]:
        """A request to come: rows, and tokens that it goes on for, whatever ends a text. What was asked before is let go of."""
        for handle in self._handles:
            handle.cancel()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._handles = []
        return {"batch": batch, "capacity": capacity}

    def run(self, ids: NDArray[np.int64], past: dict[str, int]) -> tuple[None, dict[str, int]]:
        """What a benchmark times: the prompt (batch, tokens) and the choice of the token after it; then a step for every call.

        A step reads the tokens that openvino-genai chose, not ``ids``.
        """
        if not self._handles:
            config = self._genai.GenerationConfig(max_new_tokens=past["capacity"] - ids.shape[1] + 1, ignore_eos=True, do_sample=False)
            for row in ids:
                self._handles.append(self._pipeline.add_request(self._requests, self._ov.Tensor(row[None].astype(np.int64)), config))
                self._requests += 1
        self._pipeline.step()
        return None, past
