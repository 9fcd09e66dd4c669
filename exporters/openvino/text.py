"""The tokenizer as OpenVINO graphs, which openvino-genai reads texts with; and what it makes of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters.openvino.files import DETOKENIZER, TOKENIZER
from exporters.openvino.lowering import name_by_order
from exporters.openvino.runtime import TOKENIZERS, has
from exporters.text.tokens import has_tokenizer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import GateError, shortened
from pipeline.evaluate.gates import REPORT
from pipeline.evaluate.tokenizers import makes_tokens
from pipeline.live.loading import load_tokenizer

SENTENCES = (
    "In 1847 the ship's boy counted 12 gulls, 305 nets, and (so he said) one mermaid; the captain wasn't amused.\n\n  Was he?",
    "Über den Dächern — naïve café, 東京 and Москва, 3.14 % of it: <tag> {x: [1, 2]} \t end",
)


def write_tokenizer(source: Checkpoint, out: Path, trust_remote_code: bool) -> str:
    """Writes openvino_tokenizer.xml and openvino_detokenizer.xml beside the model.

    Returns:
        Half a sentence on why there are none; empty where they were written.
    """
    if not has_tokenizer(source.folder):
        return "the checkpoint has no tokenizer"
    if not has(TOKENIZERS):
        return "openvino-tokenizers is not installed"
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer

    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    if not makes_tokens(tokenizer):
        return "its tokenizer makes no tokens"
    try:
        there, back = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # it raises whatever its reading of a tokenizer meets
        return f"openvino-tokenizers cannot convert its tokenizer ({shortened(' '.join(str(error).split()) or type(error).__name__, 200)})"
    for model, name in ((there, TOKENIZER), (back, DETOKENIZER)):
        name_by_order(model, Path(name).stem)
        ov.save_model(model, out / name)
    return ""


def compare_tokenizer(source: Checkpoint, folder: Path, trust_remote_code: bool) -> int:
    """How many sentences openvino's tokenizer splits as the checkpoint's, as transformers opens that, and puts together again as it does.

    Raises:
        GateError: another token, or another text.
    """
    import openvino as ov
    import openvino_tokenizers  # noqa: F401 - its import adds its operators to openvino

    theirs = load_tokenizer(source.folder, trust_remote_code=trust_remote_code)
    core = ov.Core()
    there, back = (core.compile_model(str(folder / name), "CPU") for name in (TOKENIZER, DETOKENIZER))
    for sentence in SENTENCES:
        expected, found = list(theirs(sentence)["input_ids"]), _tokens(there, sentence)
        if found != expected:
            at = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
            raise GateError(
                f"OpenVINO's tokenizer splits a text into other tokens than the checkpoint's, first at token {at}: "
                f"{found[at : at + 3]} instead of {expected[at : at + 3]}.",
                REPORT,
            )
        text, again = theirs.decode(expected, skip_special_tokens=True), _text(back, expected)
        if text != again:
            raise GateError(f"OpenVINO's tokenizer makes {again!r} of tokens that the checkpoint's makes {text!r} of.", REPORT)
    return len(SENTENCES)


def _tokens(compiled: Any, sentence: str) -> list[int]:
    return [int(token) for token in compiled([sentence])["input_ids"][0]]


def _text(compiled: Any, ids: Sequence[int]) -> str:
    import numpy as np

    return str(compiled(np.array([ids], np.int64))["string_output"][0])
