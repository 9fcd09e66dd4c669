"""The folder that is served: where the graph is, its tokenizer, its limits."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters.folder import GENAI_CONFIG
from exporters.onnx.runtime import needs_runtime
from exporters.text.templates import PLAIN, Templates
from exporters.text.tokens import check_tokens
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json

ONNX, PACKAGE = "onnx", "package"  # of a package; of a run's folder
LEAST_TEXT, BYTES_PER_TOKEN = 2**18, 16
LONGER = 4  # times the largest body, which the text that a template makes of one may be
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


def onnx_folder(folder: Path) -> Path:
    """The ONNX export itself, given it or the package that holds it.

    Raises:
        TrimlineError: neither; says where it is, if it is below.
    """
    for place in (folder, folder / ONNX):
        if (place / GENAI_CONFIG).is_file():
            return place
    remedy = "Give a package that holds an ONNX export, or a folder that `trimline export` wrote."
    if not folder.is_dir():
        raise TrimlineError(f"There is no folder {folder}.", remedy)
    if (folder / PACKAGE / ONNX / GENAI_CONFIG).is_file():
        remedy = f"It holds a run's package: give {folder / PACKAGE}."
    raise TrimlineError(f"There is no {GENAI_CONFIG} in {folder} or in {folder / ONNX}.", remedy)


def largest_text(context: int) -> int:
    """Bytes of text that are read; far more than fills a context of so many tokens."""
    return max(LEAST_TEXT, BYTES_PER_TOKEN * context)


class ServedModel:
    """What there is to know of a model without opening it.

    Args:
        folder: a package or an ONNX folder.
        context: most tokens of prompt and answer together; None: all that the model has positions for.

    Attributes:
        folder: with the graph.
        positions: that the model has.
        context: most tokens of prompt and answer together.
        vocabulary: tokens that the model knows.
        ends: ids of the tokens that end a text.
        search: what the folder says about sampling.

    Raises:
        TrimlineError: the folder is no ONNX export for onnxruntime-genai, or has no tokenizer, or fewer positions than asked for.
    """

    def __init__(self, folder: Path, context: int | None = None) -> None:
        self.folder = place = onnx_folder(folder)
        config = read_json(place / GENAI_CONFIG)
        self.tokenizer = _tokenizer(place)
        self.fast = self.tokenizer.backend_tokenizer
        self.fast.no_truncation()  # as transformers does with what a training script has left in the file
        self.fast.no_padding()
        self.templates = Templates()
        try:
            stated = config["model"]
            self.positions, self.vocabulary = int(stated["context_length"]), int(stated["vocab_size"])
            ends = stated.get("eos_token_id", [])
        except (KeyError, TypeError, ValueError) as error:
            raise TrimlineError(f"{place / GENAI_CONFIG} does not state {error}.", "Export the model again.") from error
        check_tokens(self.tokenizer, self.vocabulary, place)
        if context is not None and context > self.positions:
            raise TrimlineError(f"--context asks for {context:,} tokens, and the model has {self.positions:,} positions.", "Lower it.")
        self.context = context or self.positions
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        self.search: dict[str, Any] = config.get("search", {})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids, with the tokens that the tokenizer puts around a text unless ``special`` is off."""
        # A batch of one: ``encode`` holds Python's lock, for more than a second where the text is long.
        return list(self.fast.encode_batch([text], add_special_tokens=special)[0].ids)

    def chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation in the model's own template, up to where the assistant speaks.

        Raises:
            ValueError: the model has no template, or its template does not render this conversation within its limits.
        """
        if not self.tokenizer.chat_template:
            raise ValueError("This model has no chat template; use /v1/completions.")
        template = self.tokenizer.get_chat_template()
        text = self.templates.render(template, self.tokenizer.special_tokens_map, messages, LONGER * largest_text(self.context))
        return self.encode(text, special=False)

    def check_template(self) -> str | None:
        """What is wrong with the template, as far as a plain conversation shows it; None: nothing, or there is none."""
        try:
            if self.tokenizer.chat_template:
                self.chat(PLAIN)
        except (TrimlineError, ValueError) as error:
            return str(error)
        return None


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
