"""An exported graph as a model of the lm-eval harness.

The harness's own class for transformers does everything that is not the model: tokens, windows, batches, stop words. It
is kept, with the two calls of the model replaced, so that a checkpoint and its graph are asked exactly the same.

A likelihood needs the logits of every position of a text. A graph that gives those of the last token is opened once more
over the same weights file, without the nodes that pick that token (``exporters.onnx.lowering.last_position``): one pass per text
instead of one per token, and the export's own gate compared that view with torch.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from transformers import PretrainedConfig

from exporters.folder import GENAI_CONFIG
from exporters.onnx.gate.evaluate import carried_tokenizer
from exporters.onnx.running.session import OnnxDecoder
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json


class GraphLM(HFLM):
    """A folder that the export stage wrote, in ONNX Runtime.

    Args:
        folder: graph, tokenizer and genai_config.json.
        decoder: the graph, giving the logits of every position.
        batch: texts that are read at once.

    Raises:
        TrimlineError: the folder has no tokenizer that transformers opens without code.
    """

    def __init__(self, folder: Path, decoder: OnnxDecoder, batch: int = 1) -> None:
        self.decoder = decoder
        stand_in: Any = SimpleNamespace(device=torch.device("cpu"), config=PretrainedConfig())
        model = read_json(folder / GENAI_CONFIG)["model"]
        longest, ends = int(model["context_length"]), model.get("eos_token_id", [])
        super().__init__(pretrained=stand_in, tokenizer=carried_tokenizer(folder), backend="causal", max_length=longest, batch_size=batch)
        self._ends = torch.tensor([*(ends if isinstance(ends, list) else [ends]), self.eot_token_id])

    def _model_call(self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (batch, sequence, vocabulary) of tokens (batch, sequence), padded on the right, which no earlier token sees."""
        return torch.from_numpy(self.decoder.logits(inps.numpy())).float()

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        """The most likely tokens after ``context`` (batch, sequence), padded on the left, until every row has said a stop word.

        Raises:
            TrimlineError: the task wants tokens drawn at random or by beams.
        """
        if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
            raise TrimlineError("The task wants sampled text, and a graph is read greedily here.", "Set do_sample: false in the task.")
        mask = settings["attention_mask"].bool()
        prompts = [row[kept].tolist() for row, kept in zip(context, mask, strict=True)]
        stopped = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0])
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        whole = context
        for step in self.decoder.greedy_steps(prompts, max_length - context.shape[1]):
            chosen = torch.from_numpy(step).masked_fill(ended, self.tokenizer.pad_token_id)
            whole = torch.cat([whole, chosen[:, None]], dim=1)
            ended |= torch.isin(chosen, self._ends)
            if ended.all() or bool(torch.as_tensor(stopped(whole, None)).all()):  # type: ignore[arg-type]
                break
        return whole
