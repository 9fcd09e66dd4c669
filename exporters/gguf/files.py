"""Writing a GGUF: the same checkpoint gives the same bytes, and one tensor is in memory at a time."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from exporters.gguf.metadata import rope_factors, write_metadata
from exporters.gguf.tensors import GGML, array, entries
from exporters.gguf.tokenizer import write_tokenizer
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.rebuild.gguf_form import GgufForm

MODEL = "model.gguf"
ROPE_FACTORS = "rope_freqs.weight"


def write_gguf(source: Checkpoint, form: GgufForm, precision: str, path: Path, events: Events) -> None:
    """Writes ``path``.

    Raises:
        TrimlineError: the tokenizer has no counterpart in llama.cpp, a number does not fit, or the disk is full.
    """
    writer = gguf.GGUFWriter(path, form.arch)
    write_metadata(writer, source, form, precision, events)
    write_tokenizer(writer, source)
    listed = list(entries(source, form, precision))
    factors = rope_factors(source, form.settings)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, np.dtype(np.float32), factors.nbytes)
    for entry in listed:
        kind = GGML[entry.precision]
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        with events.progress("writing GGUF", len(listed)) as advance:
            for entry in listed:
                writer.write_tensor_data(array(source, entry))
                advance(1)
    except OSError as error:
        why = error.strerror or "there was no room for all of it"  # numpy says how many values, and not why
        raise TrimlineError(f"{path} could not be written: {why}.", "Free some space and run the same command again.") from error
    finally:
        writer.close()
