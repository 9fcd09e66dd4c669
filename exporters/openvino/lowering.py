"""A checkpoint into OpenVINO's graph: torch traces the decoder, and OpenVINO's PyTorch frontend reads the trace.

The frontend is called directly. ``openvino.convert_model`` around it does the same, and reports every conversion to a server of its makers
unless each user has forbidden it; what somebody prunes is nobody's business.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from exporters.flat import FlatDecoder, additive, cache_slots, sample_call
from exporters.onnx.lowering.config import stock_config
from exporters.onnx.lowering.rotary import follows_the_text
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError, shortened

INPUTS = ("input_ids", "attention_mask", "position_ids")
LOGITS = "logits"
NUMBERED = re.compile(r"[A-Za-z][A-Za-z0-9]*_\d+(\.\d+)?")


class TracedDecoder(FlatDecoder):
    """As ``FlatDecoder``, with the caches as arguments of their own, which a trace wants.

    The layers of transformers' cache are given their tensors at once: one that is filled by ``update`` begins with an empty tensor of one
    axis, which OpenVINO's Concat does not take.
    """

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(input_ids, attention_mask, position_ids, list(past))

    def cache(self, past: list[Tensor]) -> Any:
        cache: Any = DynamicCache()
        cache.layers = [DynamicLayer() for _ in range(max(self.slots) + 1)]
        for place, slot in enumerate(self.slots):
            layer = cache.layers[slot]
            layer.lazy_initialization(past[2 * place], past[2 * place + 1])
            layer.keys, layer.values = past[2 * place], past[2 * place + 1]
        return cache

    def in_window(self, seen: Tensor, places: Tensor, position_ids: Tensor) -> Tensor:
        """As ``FlatDecoder``, written in the one order of operators by which OpenVINO knows a window.

        Paged attention, which openvino-genai turns the graph into, drops the mask of a graph and reads a window from operators that it
        knows, those of transformers' own masks. A window in other words is lost there without a word, and short texts do not show it.
        """
        assert self.window is not None
        near = places[:, None, None, :] > position_ids[:, None, :, None] + torch.tensor(-self.window)
        allowed = seen[:, None]
        kept = allowed & (allowed & near & allowed) & allowed
        batch, rows, columns = *position_ids.shape, places.shape[1]
        return additive(kept.expand(batch, 1, rows, columns), self.dtype)[:, :, :, :columns]


def with_attention(source: Checkpoint) -> list[int]:
    """Blocks that have attention, and so a cache."""
    return [number for number, block in enumerate(source.geometry.blocks) if block.kv_groups]


def cache_names(number: int) -> tuple[str, str, str, str]:
    """Of a block: key and value that go in, key and value that come out."""
    past, present = f"past_key_values.{number}", f"present.{number}"
    return f"{past}.key", f"{past}.value", f"{present}.key", f"{present}.value"


def lower(source: Checkpoint, model: PreTrainedModel) -> Any:
    """An ``openvino.Model`` with the cache as plain inputs and outputs, in fp32; weights share the memory of ``model``.

    Args:
        source: what ``model`` was loaded from.
        model: in fp32 on the processor.

    Raises:
        TrimlineError: torch cannot trace it, or OpenVINO cannot read what was traced; the rotary embedding follows the length of the text.
    """
    check_rotary(source)
    blocks = with_attention(source)
    ids, mask, positions, past = sample_call(source.geometry, blocks, torch.float32)
    decoder = TracedDecoder(model, cache_slots(model, source.geometry, blocks)).eval()
    with _quietly(), torch.no_grad():
        found = _read(decoder, (ids, mask, positions, *past), source)
    return _named(found, source, blocks)


def check_rotary(source: Checkpoint) -> None:
    """Refuses what a trace would hold still.

    Raises:
        TrimlineError: the angles are computed anew by the length of each text.
    """
    if follows_the_text(source.geometry.family, stock_config(source)):
        raise TrimlineError(
            f"OpenVINO's graph cannot express {source.folder}: its rotary embedding of type 'dynamic' is computed anew by the length of each text.",
            "Export to ONNX with lowering: fused, which holds the angles up to the model's last position.",
        )


def _read(decoder: TracedDecoder, arguments: tuple[Tensor, ...], source: Checkpoint) -> Any:
    from openvino._offline_transformations import apply_fused_names_cleanup, apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        frontend = FrontEndManager().load_by_framework("pytorch")
        traced = TorchScriptPythonDecoder(decoder, example_input=arguments, shared_memory=True)
        found = frontend.convert(frontend.load(traced))
    except Exception as error:  # its exceptions are plain RuntimeErrors with a log in them
        why = shortened(" ".join(str(error).split()), 300)
        raise TrimlineError(f"OpenVINO's PyTorch frontend cannot read {source.folder}: {why}", "Export to ONNX instead.") from error
    apply_moc_transformations(found, cf=False, smart_reshape=True)
    apply_fused_names_cleanup(found)
    return found


def _named(found: Any, source: Checkpoint, blocks: list[int]) -> Any:
    """Inputs and outputs under the names that openvino-genai asks for, with their sizes."""
    import openvino as ov

    past = [name for number in blocks for name in cache_names(number)[:2]]
    present = [name for number in blocks for name in cache_names(number)[2:]]
    sizes = [[-1, -1]] * len(INPUTS)
    sizes += [[-1, source.geometry.blocks[number].kv_groups, -1, source.geometry.head_dim] for number in blocks for _ in range(2)]
    if len(found.inputs) != len(sizes):
        raise TrimlineError(
            f"OpenVINO made {len(found.inputs)} inputs of {len(sizes)} for {source.folder}.", "Please report it with the recipe."
        )
    for value, name, size in zip(found.inputs, (*INPUTS, *past), sizes, strict=True):
        value.get_tensor().set_names({name})
        value.get_node().set_friendly_name(name)
        value.get_node().set_partial_shape(ov.PartialShape(size))
    for value, name in zip(found.outputs, (LOGITS, *present), strict=True):
        value.get_tensor().set_names({name})
    found.validate_nodes_and_infer_types()
    return found


def name_by_order(model: Any, name: str) -> None:
    """Gives a model a name, and nodes that OpenVINO numbered by a count of the process's own one by their place: same checkpoint, same bytes."""
    model.set_friendly_name(name)
    for place, node in enumerate(model.get_ordered_ops()):
        if NUMBERED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}/{place}")
        for output in node.outputs():
            names = output.get_names()
            kept = {name for name in names if not NUMBERED.fullmatch(name)}
            if kept != names:
                output.get_tensor().set_names(kept)


@contextmanager
def _quietly() -> Iterator[None]:
    """Tracing warns of every Python number on its way."""
    logger = logging.getLogger("torch.jit")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
