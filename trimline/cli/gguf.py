"""``trimline export --format gguf``: what the command line says becomes the exporter's slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exporters.folder import GATE
from exporters.gguf.recipe import GgufSlice
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.common.options import RunOptions
from trimline import api
from trimline.cli.session import Session


def export_gguf(here: Session, model: str, output: Path, chosen: dict[str, Any], options: RunOptions) -> None:
    """Writes and gates model.gguf, and prints what its gates saw."""
    folder = api.export_gguf(model, output, recipe=_slice(chosen), options=options, events=here.events)
    gate = read_json(folder / GATE)
    for name in ("transformers", "llama.cpp"):
        here.out.print(f"{name}: {_line(gate[name])}", soft_wrap=True, markup=False, highlight=False)
    here.out.print(f"Written to {folder}, as GGUF architecture {gate['architecture']}", soft_wrap=True, highlight=False)
    here.answer({"folder": str(folder), "gate": gate})


def only_for_onnx(lowering: bool, logits: bool, group_size: bool) -> None:
    """Refuses options that say nothing about a GGUF; each is whether it was given.

    Raises:
        TrimlineError: one was given; the first is named.
    """
    for name, given, of in (("--lowering", lowering, "ONNX"), ("--logits", logits, "ONNX"), ("--group-size", group_size, "OpenVINO")):
        if given:
            raise TrimlineError(f"{name} is for {of}, and the format is gguf.", f"Leave out {name}, or --format gguf.")


def _slice(chosen: dict[str, Any]) -> GgufSlice:
    try:
        return GgufSlice(**{name: value for name, value in chosen.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise TrimlineError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']} is not possible.", f"{first['msg']}.") from None


def _line(gate: dict[str, Any]) -> str:
    if not gate["run"]:
        return f"not run ({gate['why']})"
    ratio = f", perplexity × {gate['perplexity ratio']:.4f}" if "perplexity ratio" in gate else ""
    return f"largest logit difference {gate['difference']:.2g}{ratio}"
