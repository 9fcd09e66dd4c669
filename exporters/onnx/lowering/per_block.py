"""onnxruntime-genai's builder, told each block's own sizes, absent sublayers and tables.

A family's class says in ``make_layer`` what stands between its sublayers: norms before and after, multipliers, sums. That stays as it
is. What belongs to an absent sublayer comes to nothing: a norm of it is not emitted, what is made of its output is not either, and
when the next sublayer begins, the residual stream is what it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from transformers import PretrainedConfig

from exporters.onnx.lowering.quantise import quantised_matrix
from exporters.onnx.lowering.rotary import Tables
from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import BlockShape, Geometry
from pipeline.checkpoints.checkpoint import Checkpoint

Keep = Callable[[torch.Tensor], torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "/lm_head/MatMul"
ROTARY_TABLES = ("cos_cache", "sin_cache")
STREAM = ("root_input", "skip_input")  # the builder's residual stream: their sum, of which the second was written last
NOTHING = ""  # what an absent sublayer writes
ROUNDED_SCALE = "GemmaModel"  # the builder's class that scales embeddings by a square root of two decimals


class PerBlock:
    """Overrides for one of the builder's family classes.

    Attributes:
        geometry: of the checkpoint.
        kinds: per block, the kind of its rotary embedding.
        tables: cosines and sines of each kind.
        keep: as ``lower_fused`` has it.
    """

    geometry: Geometry
    kinds: tuple[str, ...]
    tables: dict[str, Tables]
    keep: Keep
    _absent: Sublayer | None = None  # the sublayer that is being left out
    _stream: dict[str, str]  # before it
    _written: bool  # whether any sublayer was emitted

    def build(self: Any, checkpoint: Checkpoint) -> ir.Model:
        geometry, family = self.geometry, self.geometry.family
        self._written = False
        if any(kind.__name__ == ROUNDED_SCALE for kind in type(self).__mro__):
            self.embed_attrs["scale"] = geometry.hidden**0.5
        self.output_types["logits"] = ir.DataType.FLOAT
        self.make_inputs_and_outputs()
        self.make_preprocessing_nodes()
        table = checkpoint.tensor(f"{family.embeddings[0]}.weight")
        head = SimpleNamespace(
            weight=table if geometry.tied else checkpoint.tensor(f"{family.head}.weight"),
            bias=checkpoint.tensor(f"{family.head}.bias") if family.head_bias else None,
        )
        if self.io_dtype != self.onnx_dtype:
            bias, head = head.bias, self._quantised(head, HEAD)
            head.bias = bias
            self.tied_quantized_embeddings = geometry.tied  # the table is then read out of the head's blocks
            self.weights = SimpleNamespace(lm_head=head)
        self.make_embedding(table)
        for number in range(len(geometry.blocks)):
            self.make_layer(number, _block_modules(checkpoint, number))
        self.layernorm_attrs["last_layernorm"] = True
        final = _norm(checkpoint, family.final_norms[0], None, family.norm_bias)
        super().make_layernorm(len(geometry.blocks), final, self._written, self.layernorm_attrs["simple"], "final_norm")  # type: ignore[misc]
        self.make_lm_head(head)
        _forget_products(self.model.graph)
        self.model.graph.sort()
        return self.model

    def make_layer(self: Any, number: int, block: SimpleNamespace) -> None:
        self._block = self.geometry.blocks[number]
        self._take_sizes(self._block)
        self.layernorm_attrs["first_layernorm"] = not self._written
        super().make_layer(number, block)  # type: ignore[misc]
        self._leave()
        self.layernorm_attrs["first_layernorm"] = not self._written
        self.layernorm_attrs["last_layernorm"] = False

    def make_layernorm(self: Any, number: int, norm: SimpleNamespace, skip: bool, simple: bool, location: str) -> None:
        if self._enter(norm.sublayer):
            # The first norm of all that are there reads embeddings alone, wherever it stands.
            super().make_layernorm(number, norm, skip and self._written, simple, location)  # type: ignore[misc]

    def make_attention(self: Any, number: int, attention: SimpleNamespace, root_input: str, **options: Any) -> None:
        if self._enter(Sublayer.ATTENTION):
            super().make_attention(number, attention, root_input, **options)  # type: ignore[misc]
            self._written = True

    def make_mlp(self: Any, number: int, mlp: SimpleNamespace, root_input: str) -> None:
        if self._enter(Sublayer.FFN):
            super().make_mlp(number, mlp, root_input)  # type: ignore[misc]
            self._written = True

    def make_node(self: Any, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **options: Any) -> None:
        if self._absent is None:
            if NOTHING in inputs and op_type == "Add":  # a sum of both sublayers, of which one is absent
                op_type, inputs = "Identity", [name for name in inputs if name != NOTHING]
            super().make_node(op_type, inputs, outputs, **options)  # type: ignore[misc]

    def make_value(self: Any, name: str, *options: Any, **more: Any) -> ir.Value:
        return ir.Value(name=name) if self._absent is not None else super().make_value(name, *options, **more)  # type: ignore[misc]

    def _enter(self: Any, sublayer: Sublayer | None) -> bool:
        """Whether the sublayer, or one of those that share a norm, is there. The stream is then what it was before an absent one."""
        if self._absent is not sublayer:
            self._leave()
        there = bool(self._block.has(sublayer))
        if not there and sublayer is not None and self._absent is None:
            self._stream = {name: self.layernorm_attrs[name] for name in STREAM}
            self._absent = sublayer
            self.layernorm_attrs["skip_input"] = NOTHING
        return there

    def _leave(self: Any) -> None:
        if self._absent is not None:
            self.layernorm_attrs |= self._stream
            self._absent = None

    def _take_sizes(self: Any, shape: BlockShape) -> None:
        self.num_kv_heads = shape.kv_groups
        self.num_attn_heads = shape.kv_groups * self.geometry.queries_per_group
        self.q_size, self.kv_size = self.num_attn_heads * self.head_size, self.num_kv_heads * self.head_size
        self.intermediate_size = shape.ffn

    def make_cache_names(self: Any, kinds: list[str], template: str) -> dict[int, str]:
        names = super().make_cache_names(kinds, template)  # type: ignore[misc]
        return {number: name for number, name in names.items() if self.geometry.blocks[number].kv_groups}

    def make_key_value_cache_shape(self: Any, number: int, shape: list[Any]) -> list[Any]:
        return [shape[0], self.geometry.blocks[number].kv_groups, shape[2], self.geometry.head_dim]

    def make_rope_init(self: Any, config: PretrainedConfig) -> None:
        """Nothing: the builder's classes know some kinds of scaling each, and refuse or overlook the others."""

    def make_rotary_embedding_multi_cache(self: Any) -> None:
        """Nothing: tables are made when a block needs them."""

    def make_attention_qk_rope(self: Any, number: int, **options: Any) -> tuple[str, str]:
        self._kind = self.kinds[number]
        if not self.attention_attrs["use_rope_in_attn"] and "position_ids" not in self.input_names:
            return "", ""  # the class leaves the rotary embedding out of this block; the builder would ask for positions
        found: tuple[str, str] = super().make_attention_qk_rope(number, **options)  # type: ignore[misc]
        return found

    def make_rotary_embedding_caches(self: Any, **options: Any) -> tuple[str, ...]:
        suffix = f"_{self._kind}" if self._kind else ""
        names = tuple(f"{name}{suffix}" for name in ROTARY_TABLES)
        for name, table in zip(names, self.tables[self._kind], strict=True):
            if name not in self.model.graph.initializers:
                self.make_initializer(table, name, to=self.io_dtype)
        return names

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


def _forget_products(graph: ir.Graph) -> None:
    """Drops dimensions named after a product, such as "sequence_length * num_attention_heads".

    One name says one size to ONNX Runtime, which then reuses a buffer of one block for another with more heads.
    """
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([None if "*" in str(size) else size for size in value.shape])


def _block_modules(checkpoint: Checkpoint, number: int) -> SimpleNamespace:
    """One block's tensors under the attribute names that the builder reads them by; absent norms know whose they are."""
    geometry = checkpoint.geometry
    family, shape = geometry.family, geometry.blocks[number]
    block = SimpleNamespace(self_attn=SimpleNamespace(), mlp=SimpleNamespace())
    for linear, _ in geometry.linears(shape):
        path = family.module(number, linear.name)
        bias = checkpoint.tensor(f"{path}.bias") if geometry.has_bias(linear) else None
        _attach(block, linear.name, SimpleNamespace(weight=checkpoint.tensor(f"{path}.weight"), bias=bias))
    for norm in family.norms:
        there, path = shape.has(norm.sublayer), family.module(number, norm.name)
        module = _norm(checkpoint, path, norm.sublayer, norm.bias) if there else SimpleNamespace(sublayer=norm.sublayer)
        _attach(block, norm.name, module)
    return block


def _norm(checkpoint: Checkpoint, path: str, sublayer: Sublayer | None, biased: bool) -> SimpleNamespace:
    bias = checkpoint.tensor(f"{path}.bias") if biased else None
    return SimpleNamespace(weight=checkpoint.tensor(f"{path}.weight"), bias=bias, sublayer=sublayer)


def _attach(block: SimpleNamespace, path: str, module: SimpleNamespace) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        block = getattr(block, parent)
    setattr(block, name, module)
