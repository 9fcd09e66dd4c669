"""The folder that is served: where the graph is, its tokenizer, its limits."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters.folder import GENAI_CONFIG
from exporters.onnx.runtime import has_genai, needs_runtime
from exporters.text.tokens import check_tokens
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json

ONNX = "onnx"
EXTRA = ("fastapi", "uvicorn", "prometheus_client", "openai")


def needs_extra() -> None:
    """Demands what serving is built on.

    Raises:
        TrimlineError: a package of the extra is missing; it is named.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise TrimlineError(f"Serving needs {', '.join(missing)}, which is not installed.", "pip install 'trimline[cpu,serve]'.")
    needs_runtime()
    if not has_genai():
        raise TrimlineError("Serving needs onnxruntime-genai, which is not installed.", "pip install 'trimline[cpu,serve]'.")


def onnx_folder(folder: Path) -> Path:
    """The ONNX export itself, given it or the package that holds it.

    Raises:
        TrimlineError: neither.
    """
    for place in (folder, folder / ONNX):
        if (place / GENAI_CONFIG).is_file():
            return place
    raise TrimlineError(
        f"There is no {GENAI_CONFIG} in {folder} or in {folder / ONNX}.",
        "Give a package that holds an ONNX export, or a folder that `trimline export` wrote.",
    )


class ServedModel:
    """What there is to know of a model without opening it.

    Attributes:
        folder: with the graph.
        context: most tokens of prompt and answer together.
        vocabulary: tokens that the model knows.
        ends: ids of the tokens that end a text.
        search: what the folder says about sampling.

    Raises:
        TrimlineError: the folder is no ONNX export for onnxruntime-genai, or has no tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = place = onnx_folder(folder)
        config = read_json(place / GENAI_CONFIG)
        self.tokenizer = _tokenizer(place)
        self.fast = self.tokenizer.backend_tokenizer
        try:
            stated = config["model"]
            self.context, self.vocabulary = int(stated["context_length"]), int(stated["vocab_size"])
            ends = stated.get("eos_token_id", [])
        except (KeyError, TypeError, ValueError) as error:
            raise TrimlineError(f"{place / GENAI_CONFIG} does not state {error}.", "Export the model again.") from error
        check_tokens(self.tokenizer, self.vocabulary, place)
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self.search: dict[str, Any] = config.get("search", {})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids, with the tokens that the tokenizer puts around a text unless ``special`` is off."""
        return list(self.fast.encode(text, add_special_tokens=special).ids)

    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's own template, up to where the assistant speaks.

        Raises:
            ValueError: the model has no template, or its template refuses this conversation.
        """
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ValueError("This model has no chat template; use /v1/completions.")
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"The model's chat template refuses this conversation: {error}") from error
        return self.encode(text, special=False)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in read_json(settings):
        raise TrimlineError(f"The tokenizer of {folder} needs Python code from that folder ({settings.name}).", "Use a stock tokenizer.")
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what it raises depends on the file that is missing or broken
        what = " ".join(str(error).split())[:200]
        raise TrimlineError(f"{folder} has no tokenizer that transformers opens ({what}).", "Export from a folder with one.") from error
    if not found.is_fast:
        raise TrimlineError(f"The tokenizer of {folder} has no tokenizer.json.", "Save it again with transformers 5.")
    return found
