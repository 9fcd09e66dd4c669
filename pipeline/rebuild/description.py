"""Whether a family's description is true of a model of it: every tensor is in it, and units are where it says.

Of a unit that goes, the column that reads it becomes zero. What writes it may then become zero too without changing any logit, if it
writes that unit and no other. A tensor that fails this is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.architecture.families import Axis, Linear, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError
from pipeline.common.files import read_json
from pipeline.evaluate.gates import compare_logits, gate_tokens
from pipeline.evaluate.settings import CONFIG
from pipeline.live.loading import as_trimline_error, quiet_transformers

UNIT = 1  # neither the first, which an interleaved order has in the same place, nor beyond what two units reach
GUIDE = "Correct the family's file; docs/add-an-architecture.md says what each field means."


def check_description(folder: Path) -> None:
    """Compares the description of a folder's family with the model that the stock class opens.

    Args:
        folder: a dense checkpoint that fits into memory.

    Raises:
        GateError: names the tensor that the description lacks, invents, gives another shape, or other units than it has.
    """
    geometry = Geometry.from_config(read_json(folder / CONFIG))
    with quiet_transformers(), as_trimline_error(folder):  # not by our opening, which goes by the description
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    check_tensors(model, geometry)
    for sublayer in Sublayer:
        if sublayer is Sublayer.FFN or not geometry.family.norms_over_heads:
            _check_units(model, geometry, sublayer)


def check_tensors(model: PreTrainedModel, geometry: Geometry) -> None:
    """Compares names and shapes of all that a model stores.

    Raises:
        GateError: as ``check_description``.
    """
    kind, described = geometry.family.model_type, dict(geometry.tensors())
    stored = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: shape for name, shape in stored.items() if name in described or name not in _tied(model)}
    for name, shape in stored.items():
        if name not in described:
            raise GateError(f"The description of {kind} lacks {name} of shape {shape}.", GUIDE)
        if described[name] != shape:
            raise GateError(f"The description of {kind} gives {name} the shape {described[name]}, and it has {shape}.", GUIDE)
    for name in described.keys() - stored.keys():
        raise GateError(f"The description of {kind} has {name}, and the model has not.", GUIDE)


def _tied(model: PreTrainedModel) -> set[str]:
    return set(getattr(model, "all_tied_weights_keys", None) or ())


def _check_units(model: PreTrainedModel, geometry: Geometry, sublayer: Sublayer) -> None:
    family, number = geometry.family, len(geometry.blocks) - 1
    unit = min(UNIT, geometry.blocks[number].units(sublayer) - 1)
    reader = family.reader(sublayer)
    tokens = gate_tokens(geometry.vocab, 2, 8, seed=3)
    weight = model.get_parameter(f"{family.module(number, reader.name)}.weight")
    with _zeroed(weight, 1, _indices(geometry, reader.columns, unit)):
        alone = _logits(model, tokens)
        for linear in family.writers(sublayer):
            for indices in _sections(geometry, linear, number, unit):
                name = f"{family.module(number, linear.name)}.weight"
                with _zeroed(model.get_parameter(name), 0, indices):
                    if not compare_logits(alone, _logits(model, tokens)).passed:
                        raise GateError(
                            f"The description of {family.model_type} is wrong about {name}: its rows {_span(indices)} are not what "
                            f"{reader.name} reads in the columns of {sublayer.value} unit {unit}.",
                            GUIDE,
                        )


def _sections(geometry: Geometry, linear: Linear, number: int, unit: int) -> Iterator[torch.Tensor]:
    """Rows of a unit, section by section of a fused projection."""
    start = 0
    for axis in linear.rows:
        yield _indices(geometry, axis, unit) + start
        start += geometry.axis_size(axis, geometry.blocks[number])


def _indices(geometry: Geometry, axis: Axis, unit: int) -> torch.Tensor:
    width = geometry.unit_width(axis)
    return torch.arange(unit * width, (unit + 1) * width)


def _span(indices: torch.Tensor) -> str:
    first, last = int(indices[0]), int(indices[-1])
    return f"{first} to {last}" if last > first else f"{first}"


@contextmanager
def _zeroed(weight: torch.nn.Parameter, dimension: int, indices: torch.Tensor) -> Iterator[None]:
    before = weight.detach().clone()
    with torch.no_grad():
        weight.index_fill_(dimension, indices, 0.0)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens, use_cache=False).logits
