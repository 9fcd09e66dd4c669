"""The portable lowering: torch's exporter, standard operators only, which TensorRT and every other runtime parse."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch.export import Dim

from exporters.flat import FlatDecoder, cache_slots, sample_call
from exporters.onnx.lowering.config import stock_config
from exporters.onnx.lowering.precision import NUMBERS
from exporters.onnx.lowering.rotary import follows_the_text
from exporters.recipe import Precision
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.live.loading import load_model
from pipeline.live.paging import Keep, open_mapped

OPSET, OPSET_OF_INT4 = 20, 21
STANDARD = {"", "ai.onnx"}
TRACED = "trimline.traced"  # the model in torch, among what a graph knows of itself in memory only


def lower_portable(
    checkpoint: Checkpoint, precision: Precision, events: Events, keep: Keep | None = None, *, trust_remote_code: bool = False
) -> ir.Model:
    """The graph of a checkpoint, of standard operators, in fp32, fp16 or bf16 (fp32 for what is quantised later).

    As the fused graph, with ``position_ids`` (batch, sequence) as a further input; batch, sequence and past are
    dynamic, and padding may stand anywhere. With ``keep`` the weights stay in the checkpoint's files, and where their dtype is
    another one, ``keep`` takes them out of memory.

    Raises:
        TrimlineError: a node outside the standard domain came out; the rotary embedding is one that no graph can be traced of.
    """
    _check_rotary(checkpoint)
    geometry = checkpoint.geometry
    dtype = NUMBERS[precision].torch
    if keep is None:
        model = load_model(checkpoint.folder, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
    else:
        model = open_mapped(checkpoint.folder, RunOptions(trust_remote_code=trust_remote_code), dtype, keep)
    if geometry.family.mixture is not None:
        model.set_experts_implementation("batched_mm")  # the others branch on which experts are chosen, which cannot be traced
    with_attention = [number for number, block in enumerate(geometry.blocks) if block.kv_groups]
    names = [f"{number}.{kind}" for number in with_attention for kind in ("key", "value")]
    with _quietly() as heard, torch.no_grad():
        program = torch.onnx.export(
            FlatDecoder(model, cache_slots(model, geometry, with_attention)).eval(),
            sample_call(geometry, with_attention, dtype),
            dynamo=True,
            opset_version=OPSET_OF_INT4 if precision == "int4" else OPSET,
            dynamic_shapes=_dynamic(len(names)),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise TrimlineError(f"torch's exporter gave no graph for {checkpoint.folder}.", "Use lowering: fused where the family has it.")
    foreign = sorted({node.domain for node in program.model.graph.all_nodes()} - STANDARD)
    if foreign:
        raise TrimlineError(f"The portable graph holds operators of {', '.join(foreign)}.", "Please report it with the recipe.")
    events.note("built the portable graph", exporter=heard.getvalue().splitlines())
    program.model.meta[TRACED] = model
    return program.model


def give_back_weights(graph: ir.Model) -> None:
    """Frees the memory of weights that were converted to be traced; the graph, which has been saved, can be so no more.

    torch's exporter holds on to all that it has traced for as long as the process lives.
    """
    model = graph.meta.pop(TRACED, None)
    for tensor in () if model is None else (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable():  # what is mapped from a file is not
            storage.resize_(0)


def _check_rotary(checkpoint: Checkpoint) -> None:
    if follows_the_text(checkpoint.geometry.family, stock_config(checkpoint)):
        raise TrimlineError(
            f"The portable lowering cannot express {checkpoint.folder}: its rotary embedding of type 'dynamic' is computed anew by the "
            "length of each text, which torch's exporter does not follow.",
            "Use lowering: fused (or auto), which holds the angles up to the model's last position.",
        )


def _dynamic(caches: int) -> tuple[Any, ...]:
    batch, sequence, past = Dim("batch"), Dim("sequence"), Dim("past")
    step = {0: batch, 1: sequence}
    return step, {0: batch, 1: Dim("total")}, step, [{0: batch, 2: past}] * caches


@contextlib.contextmanager
def _quietly() -> Iterator[io.StringIO]:
    """Keeps what torch's exporter says off the terminal, and hands it over."""
    heard = io.StringIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield heard
        finally:
            logger.setLevel(level)
