"""onnxruntime-genai: the config file that it opens a folder by, and a thin runner for the gate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.folder import GENAI_CONFIG
from exporters.onnx.files import GRAPH, PAST
from exporters.onnx.lowering.config import context_length, stock_config
from exporters.onnx.lowering.rotary import table_positions
from exporters.onnx.running.providers import FEW_REWRITES, UNPACKED
from exporters.onnx.sparsity import load_graph
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json

# What genai calls its plain decoder runner; it reads every size from the graph and the config, none from this name.
KNOWN_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
GENERIC_TYPE = "llama"
# onnxruntime-genai 0.18 takes a prompt that ends with the pad token to end before it. Rows are computed one at a time and
# need no padding, so no token is the pad token; a folder that states none has token 0 for it.
NO_TOKEN = -1


def write_genai_config(checkpoint: Checkpoint, lowering: str, folder: Path) -> None:
    """Writes genai_config.json beside a graph of this checkpoint, which is in ``folder`` already.

    Head counts are stated as the largest of any block; the runtime takes each block's own from the graph's inputs.
    """
    geometry = checkpoint.geometry
    generation = checkpoint.folder / "generation_config.json"
    stated = read_json(generation) if generation.is_file() else {}
    settings = checkpoint.config | {key: value for key, value in stated.items() if value is not None}
    groups = max(block.kv_groups for block in geometry.blocks)
    fused = lowering == "fused"
    inputs = [value.name for value in load_graph(folder / GRAPH).graph.input if not value.name.startswith(PAST)]
    caches = [(side, kind) for side in ("past_key_values", "present") for kind in ("key", "value")]
    names = {f"{side.removesuffix('_key_values')}_{kind}_names": f"{side}.%d.{kind}" for side, kind in caches}
    family = geometry.family.model_type
    context = fused_positions(checkpoint) if fused else context_length(checkpoint)
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH,
        "head_size": geometry.head_dim,
        "hidden_size": geometry.hidden,
        "inputs": {name: name for name in inputs} | {key: name for key, name in names.items() if key.startswith("past")},
        "outputs": {"logits": "logits"} | {key: name for key, name in names.items() if key.startswith("present")},
        "num_attention_heads": groups * geometry.queries_per_group,
        "num_hidden_layers": len(geometry.blocks),
        "num_key_value_heads": groups,
    }
    model = {
        "type": family if family in KNOWN_TYPES else GENERIC_TYPE,
        "context_length": context,
        "vocab_size": geometry.vocab,
        "decoder": decoder,
        **_special_tokens(settings),
    }
    search = {"max_length": context, "do_sample": False, "num_beams": 1, "past_present_share_buffer": fused}
    search |= {key: settings[key] for key in ("temperature", "top_k", "top_p", "repetition_penalty") if settings.get(key) is not None}
    write_json(folder / GENAI_CONFIG, {"model": model, "search": search})


def fused_positions(checkpoint: Checkpoint) -> int:
    """Tokens that the fused graph of a checkpoint takes: what its rotary tables hold."""
    return table_positions(stock_config(checkpoint))


def promised_positions(folder: Path, checkpoint: Checkpoint) -> int:
    """Tokens that the graph in a folder takes, as its genai_config.json says; without one, those of the checkpoint."""
    stated = folder / GENAI_CONFIG
    return int(read_json(stated)["model"]["context_length"]) if stated.is_file() else context_length(checkpoint)


def _special_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    found = {"bos_token_id": settings.get("bos_token_id"), "eos_token_id": settings.get("eos_token_id")}
    return {key: value for key, value in found.items() if value is not None} | {"pad_token_id": NO_TOKEN}


class GenaiDecoder:
    """An exported folder in onnxruntime-genai.

    Args:
        folder: with genai_config.json.
        threads: of ONNX Runtime inside an operator; 0: its own choice.
        mapped: weights stay in their file; without it, ONNX Runtime packs a copy of them.

    Raises:
        TrimlineError: onnxruntime-genai cannot open the folder.
    """

    def __init__(self, folder: Path, threads: int = 0, mapped: bool = False) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        try:
            config = genai.Config(str(folder))
            session: dict[str, Any] = {"intra_op_num_threads": threads} if threads else {}
            if mapped:
                session |= {UNPACKED: "1", "graph_optimization_level": FEW_REWRITES, "enable_cpu_mem_arena": False}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self._model = genai.Model(config)
        except Exception as error:  # its exceptions are plain RuntimeErrors
            raise TrimlineError(f"onnxruntime-genai cannot open {folder}: {error}.", "Export it again.") from error

    def forced(self, prompt: Sequence[int], following: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the prompt and after each following token, whatever the model would have said itself.

        Returns:
            Shape (1 + following, vocabulary).
        """
        generator = self._generator(1, len(prompt) + len(following) + 1)
        generator.append_tokens(np.asarray(prompt, np.int32))
        rows = [generator.get_logits()[0, -1].copy()]
        for token in following:
            generator.append_tokens(np.asarray([token], np.int32))
            rows.append(generator.get_logits()[0, -1].copy())
        return np.stack(rows)

    def settings(self) -> dict[str, Any]:
        """What it takes the folder to say of searching, under its own names; and ``ends``, ids of the tokens that end a text.

        ``ends`` is None where it cannot open the folder's tokenizer, which it knows fewer kinds of than transformers.
        """
        found: dict[str, Any] = dict(self._genai.GeneratorParams(self._model).get_search_options())
        try:
            ends = list(self._genai.Tokenizer(self._model).eos_token_ids)
        except RuntimeError:
            ends = None
        return found | {"ends": ends}

    def empty(self, batch: int, capacity: int) -> Any:
        """A generator of ``batch`` rows that goes on for ``capacity`` tokens, whatever ends a text."""
        return self._generator(batch, capacity, min_length=capacity)

    def run(self, ids: NDArray[np.int64], past: Any) -> tuple[None, Any]:
        """What a benchmark times: the prompt (batch, tokens) and the choice of the token after it; then a step for every call.

        A step reads the token that the generator chose, not ``ids``: it takes tokens of several rows once only.
        """
        if past.token_count() == 0:
            past.append_tokens(ids.astype(np.int32))
        past.generate_next_token()
        return None, past

    def _generator(self, batch: int, length: int, **more: Any) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=length, do_sample=False, batch_size=batch, **more)
        return self._genai.Generator(self._model, params)
