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
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel

from exporters.onnx.lowering.config import stock_config
from exporters.onnx.lowering.precision import NUMBERS
from exporters.onnx.lowering.rotary import follows_the_text
from exporters.recipe import Precision
from pipeline.architecture.geometry import Geometry
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
            _Flat(model, _cache_slots(model, geometry, with_attention)).eval(),
            _sample(geometry, with_attention, dtype),
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


class _Flat(nn.Module):
    """The model with its cache as plain tensors, and a mask made from the inputs alone.

    transformers asks the cache of one chosen block how long the past is, and a pruned block may have none.
    """

    def __init__(self, model: PreTrainedModel, slots: list[int]) -> None:
        super().__init__()
        self.model, self.slots = model, slots
        config = model.config
        window = getattr(config, "sliding_window", None)
        self.window = window if getattr(config, "use_sliding_window", True) else None
        self.dtype = model.dtype
        self.kinds = set(getattr(config, "layer_types", None) or ())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        cache: Any = DynamicCache()
        for place, slot in enumerate(self.slots):
            cache.update(past[2 * place], past[2 * place + 1], slot)
        out = self.model(
            input_ids=input_ids,
            attention_mask=self._mask(input_ids, attention_mask, position_ids),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [t for slot in self.slots for t in (cache.layers[slot].keys, cache.layers[slot].values)]
        return (out.logits.float(), *present)

    def _mask(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        sequence, total = input_ids.shape[1], attention_mask.shape[1]
        queries = (torch.arange(sequence) + (total - sequence))[:, None]
        seen = (torch.arange(total)[None, :] <= queries)[None] & attention_mask.bool()[:, None, :]
        masks = {"full_attention": _additive(seen, self.dtype)}
        if self.window is not None:
            # A window counts tokens, and padding may stand between them: places in the cache will not do.
            places = attention_mask.cumsum(1) - 1
            masks["sliding_attention"] = _additive(seen & (places[:, None, :] > position_ids[:, :, None] - self.window), self.dtype)
        if "sliding_attention" in self.kinds:
            return masks
        return masks["sliding_attention" if self.window is not None else "full_attention"]


def _cache_slots(model: PreTrainedModel, geometry: Geometry, with_attention: list[int]) -> list[int]:
    """Where in transformers' cache each block with attention keeps its keys: not always at the block's own number."""
    family = geometry.family
    modules: list[Any] = [model.get_submodule(family.module(number, family.attention)) for number in with_attention]
    return [module.layer_idx for module in modules]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look and a large negative number elsewhere: (batch, sequence, total) to (batch, 1, sequence, total).

    Not -inf: a query that may look nowhere (padding) would become NaN and spread through the cache.
    """
    return torch.where(seen[:, None], torch.zeros((), dtype=dtype), torch.full((), torch.finfo(dtype).min, dtype=dtype))


def _sample(geometry: Geometry, with_attention: list[int], dtype: torch.dtype) -> tuple[Any, ...]:
    # No two sizes alike and none 0 or 1, which torch.export would take for a constant.
    batch, sequence, past = 2, 3, 5
    ids = torch.ones(batch, sequence, dtype=torch.long)
    mask = torch.ones(batch, past + sequence, dtype=torch.long)
    positions = torch.arange(past, past + sequence).repeat(batch, 1)
    shapes = [(batch, geometry.blocks[number].kv_groups, past, geometry.head_dim) for number in with_attention for _ in range(2)]
    return ids, mask, positions, [torch.zeros(shape, dtype=dtype) for shape in shapes]


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
