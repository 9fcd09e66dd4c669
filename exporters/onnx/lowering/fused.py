"""The fused lowering: GroupQueryAttention and friends, which ONNX Runtime runs fastest.

onnxruntime-genai's model builder emits these operators one block at a time, but assumes that all blocks are alike
and loads a whole transformers model first. Here its family class is given each block's own sizes before it emits
that block, skips sublayers that are absent, and is handed tensors straight from the checkpoint's memory map.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from transformers import PretrainedConfig

from exporters.onnx.lowering.config import stock_config
from exporters.onnx.lowering.precision import NUMBERS
from exporters.onnx.lowering.quantise import quantised_matrix
from exporters.onnx.lowering.rotary import rotary_obstacle, rotary_tables
from exporters.onnx.lowering.windows import SLIDING, attention_windows, window_obstacle
from exporters.onnx.runtime import needs_builder
from exporters.recipe import Precision
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events

ACTIVATIONS = {"silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"}
Keep = Callable[[torch.Tensor], torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "/lm_head/MatMul"
ROTARY_TABLES = ("cos_cache", "sin_cache")


def fused_obstacle(checkpoint: Checkpoint) -> str | None:
    """Why the fused lowering would not compute what this checkpoint computes; None where it does."""
    family = checkpoint.geometry.family
    if family.onnx_builder is None:
        return f"onnxruntime-genai's builder knows no {family.model_type}"
    config = stock_config(checkpoint)
    if config.hidden_act not in ACTIVATIONS:
        return f"its activation is {config.hidden_act!r}"
    return window_obstacle(config) or rotary_obstacle(family, config)


def lower_fused(checkpoint: Checkpoint, precision: Precision, events: Events, keep: Keep | None = None) -> ir.Model:
    """The graph of a checkpoint for ONNX Runtime; weights are read when the graph is saved, or quantised one by one.

    Inputs ``input_ids`` and ``attention_mask`` (batch, past + sequence), int64; per block with attention
    ``past_key_values.{i}.key``/``.value`` (batch, KV heads of that block, past, head_dim); outputs ``logits`` (batch,
    sequence, vocabulary) and ``present.{i}.key``/``.value``. Rows are padded on the right only.

    Args:
        checkpoint: what becomes a graph.
        precision: of its weights.
        events: what the builder says.
        keep: takes what is made of weights now (quantised ones, packed ones) out of memory; without it they stay there.

    Raises:
        TrimlineError: the lowering cannot express this checkpoint; onnxruntime-genai is not installed.
    """
    if (obstacle := fused_obstacle(checkpoint)) is not None:
        raise TrimlineError(f"The fused lowering cannot express {checkpoint.folder}: {obstacle}.", "Use lowering: portable (or auto).")
    needs_builder()
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard), tempfile.TemporaryDirectory() as cache:
        graph = _builder(checkpoint, precision, cache, keep or _as_it_is).build(checkpoint)
    events.note("built the fused graph", builder=heard.getvalue().splitlines())
    return graph


def _builder(checkpoint: Checkpoint, precision: Precision, cache: str, keep: Keep) -> Any:
    importlib.import_module("onnxruntime_genai.models")  # puts the builder's own helpers on the import path
    builders = importlib.import_module("onnxruntime_genai.models.builders")
    geometry = checkpoint.geometry
    base = getattr(builders, str(geometry.family.onnx_builder))
    config = stock_config(checkpoint)
    own = {"geometry": geometry, "tables": rotary_tables(geometry.family, config), "keep": staticmethod(keep)}
    kind = type("PerBlockBuilder", (_PerBlock, base), own)
    numbers = NUMBERS[precision]
    # Caches have the length of the text in every block: a program that fills them need not know of windows.
    options = {"hf_token": False, "hf_remote": False, "windowed_kv_cache": False, **numbers.options}
    return kind(_builder_config(checkpoint, config), numbers.io, numbers.weights, "cpu", cache, options)


def _builder_config(checkpoint: Checkpoint, config: PretrainedConfig) -> PretrainedConfig:
    """The stock config with what the builder reads: it takes windows from ``layer_types`` only, for every family."""
    geometry, windows = checkpoint.geometry, attention_windows(checkpoint, config)
    config.architectures = [f"{geometry.family.class_prefix}ForCausalLM"]
    config.layer_types = ["full_attention" if window is None else SLIDING for window in windows]
    config.sliding_window = next((window for window in windows if window is not None), None)
    config.intermediate_size = max(1, *(block.ffn for block in geometry.blocks))
    return config


class _PerBlock:
    """Overrides for one of the builder's family classes."""

    geometry: Geometry
    tables: tuple[torch.Tensor, torch.Tensor]
    keep: Keep

    def build(self: Any, checkpoint: Checkpoint) -> ir.Model:
        geometry, family = self.geometry, self.geometry.family
        self.output_types["logits"] = ir.DataType.FLOAT
        self.make_inputs_and_outputs()
        self.make_preprocessing_nodes()
        table = checkpoint.tensor(f"{family.embeddings[0]}.weight")
        head = SimpleNamespace(weight=table if geometry.tied else checkpoint.tensor(f"{family.head}.weight"), bias=None)
        if self.io_dtype != self.onnx_dtype:
            head = self._quantised(head, HEAD)
            self.tied_quantized_embeddings = geometry.tied  # the table is then read out of the head's blocks
            self.weights = SimpleNamespace(lm_head=head)
        self.make_embedding(table)
        for number in range(len(geometry.blocks)):
            self.make_layer(number, _block_modules(checkpoint, number))
        self.layernorm_attrs["last_layernorm"] = True
        self._normalise(len(geometry.blocks), SimpleNamespace(weight=checkpoint.tensor(f"{family.final_norms[0]}.weight")), "final_norm")
        self.make_lm_head(head)
        _forget_products(self.model.graph)
        self.model.graph.sort()
        return self.model

    def make_cache_names(self: Any, kinds: list[str], template: str) -> dict[int, str]:
        names = super().make_cache_names(kinds, template)  # type: ignore[misc]
        return {number: name for number, name in names.items() if self.geometry.blocks[number].kv_groups}

    def make_key_value_cache_shape(self: Any, number: int, shape: list[Any]) -> list[Any]:
        return [shape[0], self.geometry.blocks[number].kv_groups, shape[2], self.geometry.head_dim]

    def make_rope_init(self: Any, config: PretrainedConfig) -> None:
        """Nothing: the builder's classes know some kinds of scaling each, and refuse or overlook the others."""

    def make_rotary_embedding_caches(self: Any, **options: Any) -> tuple[str, ...]:
        if self.rope_attrs["create_caches"]:
            for name, table in zip(ROTARY_TABLES, self.tables, strict=True):
                self.make_initializer(table, name, to=self.io_dtype)
            self.rope_attrs["create_caches"] = False
        return ROTARY_TABLES

    def make_layer(self: Any, number: int, block: SimpleNamespace) -> None:
        shape = self.geometry.blocks[number]
        self._take_sizes(shape)
        if shape.kv_groups:
            self._normalise(number, block.input_layernorm, "input")
            self.make_attention(number, block.self_attn, root_input=self.layernorm_attrs["output_0"])
        if shape.ffn:
            self._normalise(number, block.post_attention_layernorm, "post_attention")
            self.make_mlp(number, block.mlp, root_input=self.layernorm_attrs["output_0"])

    def _take_sizes(self: Any, shape: BlockShape) -> None:
        self.num_kv_heads = shape.kv_groups
        self.num_attn_heads = shape.kv_groups * self.geometry.queries_per_group
        self.q_size, self.kv_size = self.num_attn_heads * self.head_size, self.num_kv_heads * self.head_size
        self.intermediate_size = shape.ffn

    def _normalise(self: Any, number: int, norm: SimpleNamespace, location: str) -> None:
        # The residual sum is folded into every norm but the first one of the model, wherever that one stands.
        first = self.layernorm_attrs["first_layernorm"]
        self.make_layernorm(number, norm, skip=not first, simple=True, location=location)
        self.layernorm_attrs["first_layernorm"] = False

    def is_gqa_supported(self: Any) -> bool:
        return True  # the builder says no to fp16 on a processor, which ONNX Runtime has had for long

    def make_matmul_float(self: Any, matmul: Any, name: str, root_input: str, **options: Any) -> str:
        if name != HEAD or not self.geometry.tied:
            return super().make_matmul_float(matmul, name, root_input, **options)  # type: ignore[misc]
        # A tied head reads the embedding table itself; the builder would store a transposed second copy of it.
        output = "logits" if options["logits"] else f"{name}/output_0"
        self.make_node("FusedMatMul", [root_input, EMBEDDING], [output], name=name, domain="com.microsoft", transB=1)
        self.make_value(output, self.io_dtype, shape=["batch_size", options["seq_dim"], self.vocab_size])
        return name

    def make_matmul_nbits(self: Any, matmul: Any, basename: str, root_input: str, **options: Any) -> str:
        # The builder would quantise the finished graph, all weights in memory, and not the table that a tied head reads.
        quantised = matmul if hasattr(matmul, "qweight") else self._quantised(matmul, basename)
        return super().make_matmul_nbits(quantised, basename, root_input, **options)  # type: ignore[misc]

    def _quantised(self: Any, matmul: Any, name: str) -> SimpleNamespace:
        bits = self.int4_customized_weight_config.get(name, {}).get("bits", self.quant_attrs["bits"])
        found = quantised_matrix(matmul.weight, bits, method=self.quantization_algo, symmetric=self.quant_attrs["is_symmetric"])
        for part in ("qweight", "scales", "qzeros"):
            if getattr(found, part) is not None:
                setattr(found, part, self.keep(getattr(found, part)))
        return found

    def make_packed_matmul_float_class(self: Any, *matmuls: Any, **options: Any) -> Any:
        packed = super().make_packed_matmul_float_class(*matmuls, **options)  # type: ignore[misc]
        packed.weight = self.keep(packed.weight)
        return packed


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _forget_products(graph: ir.Graph) -> None:
    """Drops dimensions named after a product, such as "sequence_length * num_attention_heads".

    One name says one size to ONNX Runtime, which then reuses a buffer of one block for another with more heads.
    """
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([None if "*" in str(size) else size for size in value.shape])


def _block_modules(checkpoint: Checkpoint, number: int) -> SimpleNamespace:
    """One block's tensors under the attribute names that the builder reads them by."""
    geometry = checkpoint.geometry
    family, shape = geometry.family, geometry.blocks[number]
    block = SimpleNamespace(self_attn=SimpleNamespace(), mlp=SimpleNamespace())
    for linear, _ in geometry.linears(shape):
        path = family.module(number, linear.name)
        bias = checkpoint.tensor(f"{path}.bias") if geometry.has_bias(linear) else None
        _attach(block, linear.name, SimpleNamespace(weight=checkpoint.tensor(f"{path}.weight"), bias=bias))
    for norm in family.norms:
        if shape.has(norm.sublayer):
            _attach(block, norm.name, SimpleNamespace(weight=checkpoint.tensor(f"{family.module(number, norm.name)}.weight")))
    return block


def _attach(block: SimpleNamespace, path: str, module: SimpleNamespace) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        block = getattr(block, parent)
    setattr(block, name, module)
