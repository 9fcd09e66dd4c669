"""The GGUF export: a checkpoint into one file that llama.cpp loads, gated."""

from __future__ import annotations

import tempfile
from pathlib import Path

from exporters.folder import CONFIG, EXPORT, GATE
from exporters.gguf.child import HOW, llama_cpp_python, quantise
from exporters.gguf.files import MODEL, write_gguf
from exporters.gguf.gate import gate_file, gate_llama_cpp
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.types import stored_types
from exporters.text.tokens import check_text
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.rebuild.gguf_form import gguf_form


def export_gguf(checkpoint: Path, recipe: GgufSlice, options: RunOptions, out: Path, events: Events) -> None:
    """Writes model.gguf, export.json, checkpoint_config.json and gate.json into ``out``.

    Raises:
        TrimlineError: llama.cpp has no architecture or tokenizer for this model, or quantising is asked for without llama.cpp.
        GateError: the file does not hold, or llama.cpp does not compute, what the checkpoint does.
    """
    options.apply()
    source = Checkpoint(checkpoint)
    source.demand_no_doubt()
    source.check_finite()
    source.say_text_only(events, "the file")
    check_text(source, options.trust_remote_code)
    form = gguf_form(source.geometry, source.config)
    python = llama_cpp_python()
    if recipe.quantise and python is None:
        raise TrimlineError("Quantising is llama.cpp's work, and llama-cpp-python is not installed.", HOW)
    dropped = len(source.geometry.blocks) - len(form.kept)
    if dropped:
        events.note(f"{dropped} blocks hold nothing and are left out")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gguf-") as scratch:
        whole = Path(scratch) / MODEL if recipe.quantise else out / MODEL
        write_gguf(source, form, recipe.precision, whole, events)
        record = gate_file(source, form, recipe.precision, whole, options, events)
        if recipe.quantise:
            assert python is not None
            quantise(python, whole, out / MODEL, recipe.quantise, options.threads)
            types = stored_types(out / MODEL, recipe.quantise)
            record |= {"types": types.as_record()}
            events.gate(f"GGUF, {types.sentence()}", **types.as_record())
    record = {"architecture": form.arch} | record
    record["llama.cpp"] = gate_llama_cpp(source, form, recipe, out / MODEL, options, events)
    write_json(out / CONFIG, source.config)
    write_json(out / EXPORT, {"format": "gguf", "architecture": form.arch} | recipe.model_dump(mode="json"))
    write_json(out / GATE, record)
