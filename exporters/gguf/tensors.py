"""The tensors of a GGUF: their names, their order of channels, their types. One of the checkpoint's is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
import numpy as np
import torch

from exporters.gguf.experts import ExpertPart, expert_parts
from pipeline.architecture.families import Axis
from pipeline.architecture.geometry import Geometry
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.rebuild.gguf_form import GgufForm

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
GGML = {
    "fp32": gguf.GGMLQuantizationType.F32,
    "fp16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
ROTATED = (gguf.MODEL_TENSOR.ATTN_Q, gguf.MODEL_TENSOR.ATTN_K)
# What llama.cpp's own converter leaves in fp32, whatever the others are in: a router's rows decide who computes.
WHOLE = (gguf.MODEL_TENSOR.FFN_GATE_INP, gguf.MODEL_TENSOR.FFN_GATE_INP_SHEXP)
# xIELU's numbers by what a GGUF calls them; they are carried in the checkpoint, and keys of the file.
XIELU = {"mlp.act_fn.alpha_n": "alpha_n", "mlp.act_fn.alpha_p": "alpha_p", "mlp.act_fn.beta": "beta", "mlp.act_fn.eps": "eps"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: in the GGUF.
        source: in the checkpoint; None for one of zeros, of a sublayer that the model lacks and the file needs.
        shape: rows first, as in the checkpoint.
        precision: what it is stored in; norms, biases and routers stay fp32, as llama.cpp's own converter has them.
        rotated: its rows are rotary channels, and llama.cpp wants pairs side by side.
        added: what the file's numbers are above the checkpoint's: norms may be stored less one.
        part: which part of the source it is, where that holds several stacked matrices.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    precision: str
    rotated: bool
    added: float = 0.0
    part: ExpertPart | None = None

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * DTYPES[self.precision].itemsize


def entries(source: Checkpoint, form: GgufForm, precision: str) -> Iterator[GgufTensor]:
    """Every tensor of the file, in the order in which it is written."""
    geometry = source.geometry
    held, less_one = {name for name, _ in geometry.tensors()}, _less_one(geometry)
    names = gguf.get_tensor_name_map(architecture(form.arch), len(form.kept))
    parts = expert_parts(geometry.family)
    for place, shape in written_geometry(geometry, form).tensors():
        original = _original(place, geometry, form)
        inside = _inside_block(original, geometry)
        source_name = original if original in held else None
        if inside in XIELU:
            continue
        if inside in parts:
            for part in parts[inside]:
                yield GgufTensor(part.name(place), source_name, part.shape(shape), precision if part.matrix else "fp32", False, part=part)
            continue
        kind, name = _named(names, place, form)
        rotated = form.permuted and kind in ROTATED
        added = 1.0 if inside in less_one else 0.0
        shape = shape[-1:] if kind is gguf.MODEL_TENSOR.FFN_GATE_INP_SHEXP else shape  # one row
        kept_as = precision if len(shape) > 1 and kind not in WHOLE else "fp32"
        yield GgufTensor(name, source_name, shape, kept_as, rotated, added)
    if form.row.head == "own" and geometry.tied:
        name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.OUTPUT]
        yield GgufTensor(f"{name}.weight", f"{geometry.family.embeddings[0]}.weight", (geometry.vocab, geometry.hidden), precision, False)


def _named(names: gguf.TensorNameMap, place: str, form: GgufForm) -> tuple[gguf.MODEL_TENSOR | None, str]:
    known = names.get_type_and_name(place, try_suffixes=(".weight", ".bias"))
    if known is not None:
        kind, name = known
        return kind, name if name.endswith((".weight", ".bias")) else f"{name}.weight"
    for module, name in form.row.names.items():
        base, _, leaf = place.rpartition(".")
        if base.endswith(f".{module}"):
            return None, f"blk.{base.split('.')[-2]}.{name}.{leaf}"
    raise TrimlineError(f"GGUF has no name for the tensor {place} in its architecture {form.arch}.", "Please report it.")


def _less_one(geometry: Geometry) -> frozenset[str]:
    """Weights of norms that are stored less one, by their names inside a block."""
    family = geometry.family
    names = (*(norm.name for norm in family.norms), *family.final_norms) if family.norms_less_one else ()
    return frozenset(f"{name}.weight" for name in names)


def _inside_block(name: str, geometry: Geometry) -> str:
    start = f"{geometry.family.blocks}."
    return name.removeprefix(start).split(".", 1)[1] if name.startswith(start) else name


def stored(source: Checkpoint, entry: GgufTensor) -> torch.Tensor:
    """The checkpoint's tensor, or zeros, in the type of the file and the order of the checkpoint."""
    if entry.source is None:
        return torch.zeros(entry.shape, dtype=DTYPES[entry.precision])
    return in_file(source.tensor(entry.source), entry)


def in_file(tensor: torch.Tensor, entry: GgufTensor) -> torch.Tensor:
    """A tensor of the checkpoint, or the part of it that is meant, in the type of the file."""
    taken = tensor if entry.part is None else entry.part.of(tensor)
    return (taken.float() + entry.added if entry.added else taken).to(DTYPES[entry.precision]).reshape(entry.shape)


def array(source: Checkpoint, entry: GgufTensor) -> np.ndarray:
    """A tensor as it is written; bf16 as its 16 bits.

    Raises:
        TrimlineError: a number does not fit fp16.
    """
    found = stored(source, entry)
    if entry.rotated:
        found = pair_neighbours(found, source.geometry.head_dim)
    found = found.contiguous()
    if entry.precision == "fp16" and not torch.isfinite(found).all():
        raise TrimlineError(f"{entry.source} holds numbers that fp16 cannot hold.", "Use --precision bf16 or fp32.")
    return (found.view(torch.uint16) if found.dtype is torch.bfloat16 else found).numpy()


def pair_neighbours(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from the order of transformers (first halves, then second halves of the rotated pairs) to pairs.

    Row i of a head's first half and row i of its second half are rotated together; llama.cpp rotates rows 2i and 2i + 1.
    """
    halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def part_halves(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The inverse of ``pair_neighbours``."""
    pairs = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def written_geometry(geometry: Geometry, form: GgufForm) -> Geometry:
    """Sizes as they are written."""
    return geometry.with_blocks(form.blocks)


def architecture(name: str) -> gguf.MODEL_ARCH:
    """gguf's constant for an architecture's name."""
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def query_heads(geometry: Geometry, number: int) -> int:
    """Query heads of a block."""
    return geometry.axis_size(Axis.QUERY, geometry.blocks[number]) // geometry.head_dim


def _original(name: str, geometry: Geometry, form: GgufForm) -> str:
    """The checkpoint's name of a tensor whose block was renumbered."""
    start = f"{geometry.family.blocks}."
    if not name.startswith(start):
        return name
    place, rest = name.removeprefix(start).split(".", 1)
    return f"{start}{form.kept[int(place)]}.{rest}"
