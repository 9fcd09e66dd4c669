"""Whether a checkpoint is quantised: its config says so, or its tensors do. Numbers without their scales are another model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoints.stored import PASSED_OVER, StoredTensor
from pipeline.common.errors import TrimlineError, shown

KEYS = ("quantization_config", "compression_config")
FLOATS = ("F64", "F32", "F16", "BF16")
# What each way of quantising puts beside or in the place of a weight.
MARKS = (
    ("gptq or awq", re.compile(r"\.(qweight|qzeros|g_idx)$")),
    ("compressed-tensors", re.compile(r"\.(weight_packed|weight_shape|weight_zero_point|weight_g_idx)$")),
    ("bitsandbytes", re.compile(r"\.(SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map)$|\.quant_state\b")),
    ("with scales beside the weights", re.compile(r"[._](scale|scales|scale_inv|scale_\d)$")),
)
# transformers quantises again while it saves, unless it is told that the format on disk need not be the one that was read.
FP8 = "FineGrainedFP8Config(dequantize=True)).save_pretrained(NEW, save_original_format=False)"
DEQUANTISE = {
    "fp8": f"AutoModelForCausalLM.from_pretrained(FOLDER, quantization_config={FP8}",
    "bitsandbytes": "the model's dequantize() does it where bitsandbytes runs",
}


def check_not_quantised(folder: Path, config: Mapping[str, Any], tensors: Collection[StoredTensor]) -> None:
    """Refuses what holds other numbers than the model's weights.

    Raises:
        TrimlineError: it is quantised; the kind is named, and how to undo it.
    """
    whole = all(stored.dtype in FLOATS and _mark(stored) is None for stored in tensors if not PASSED_OVER.search(stored.name))
    for key in KEYS:
        if config.get(key) is not None:
            kind = _method(config[key])
            remedy = f"Its tensors are whole: delete {key} from config.json if they are the weights as trained." if whole else _remedy(kind)
            raise TrimlineError(f"{folder} is quantised ({kind}, says {key} of its config.json).", remedy)
    for stored in tensors:
        if (mark := _mark(stored)) is not None:
            raise TrimlineError(
                f"{folder} is quantised ({mark}: it holds {stored.name}, and its config says nothing of it).", _remedy(mark)
            )
    narrow = next((stored for stored in tensors if _is_narrow(stored)), None)
    if narrow is not None:
        kind = "fp8" if narrow.dtype.startswith("F8") else narrow.dtype
        raise TrimlineError(
            f"{folder} is quantised ({kind}: {narrow.name} is {narrow.dtype}, and neither config nor tensors say by which scale).",
            _remedy(""),
        )


def _is_narrow(stored: StoredTensor) -> bool:
    """Whether a matrix is in a type that weights are only quantised to."""
    return stored.dtype.startswith(("F8", "F4", "F6")) or (
        stored.dtype not in FLOATS and stored.name.endswith("weight") and len(stored.shape) == 2
    )


def _method(value: object) -> str:
    if not isinstance(value, Mapping):
        return shown(value)
    named = value.get("quant_method")
    if isinstance(named, str):
        return named
    return "bitsandbytes" if value.get("load_in_4bit") or value.get("load_in_8bit") else "by an unnamed method"


def _mark(stored: StoredTensor) -> str | None:
    if PASSED_OVER.search(stored.name):
        return None
    return next((kind for kind, pattern in MARKS if pattern.search(stored.name)), None)


def _remedy(kind: str) -> str:
    source = "Give the checkpoint that it was quantised from"
    return f"{source}, or dequantise it: {DEQUANTISE[kind]}." if kind in DEQUANTISE else f"{source}, in full precision."
