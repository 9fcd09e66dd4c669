"""Whether a family's description is true of a model of it: every tensor is in it, and units are where it says.

Of a unit that goes, the column that reads it becomes zero. What writes it may then become zero too without changing any logit, if it
writes that unit and no other. A tensor that fails this is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.architecture.families import Axis, Linear, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.checkpoints.modelling import profile_of
from pipeline.common.errors import GateError
from pipeline.common.files import read_json
from pipeline.evaluate.gates import compare_logits, gate_tokens
from pipeline.evaluate.settings import CONFIG
from pipeline.live.loading import as_trimline_error, quiet_transformers
from pipeline.plan.selection import Selection

UNIT = 1  # neither the first, which an interleaved order has in the same place, nor beyond what two units reach
GUIDE = "Correct the family's file; docs/add-an-architecture.md says what each field means."


def is_stock(checkpoint: Checkpoint) -> bool:
    """Whether a folder is one of its family's stock class, of which the description speaks: no larger model, no modelling file of ours."""
    return checkpoint.nested is None and profile_of(checkpoint.config) is Profile.UNIFORM


def check_description(folder: Path) -> None:
    """Compares the description of a folder's family with the model that the stock class opens.

    Args:
        folder: a dense checkpoint of that class (``is_stock``) that fits into memory.

    Raises:
        GateError: names the tensor that the description lacks, invents, gives another shape, or other units than it has.
    """
    geometry = Geometry.from_config(read_json(folder / CONFIG))
    with quiet_transformers(), as_trimline_error(folder):  # not by our opening, which goes by the description
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    check_tensors(model, geometry)
    for sublayer in geometry.family.cuttable:
        if sublayer is Sublayer.FFN or not geometry.family.norms_over_heads:
            _check_units(model, geometry, sublayer)
    check_silence(model, geometry)


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
    family = geometry.family
    number = max((number for number, block in enumerate(geometry.blocks) if block.units(sublayer)), default=-1)
    if number < 0:
        return
    unit = min(UNIT, geometry.blocks[number].units(sublayer) - 1)
    alone = Selection.everything(geometry).with_units(sublayer, number, (unit,))
    reader = family.reader(sublayer)
    tokens = gate_tokens(geometry.vocab, 2, 8, seed=3)

    def weight(linear: Linear) -> tuple[str, torch.nn.Parameter]:
        name = f"{family.module(number, linear.name)}.weight"
        return name, model.get_parameter(name)

    with _zeroed(weight(reader)[1], 1, alone.column_indices(reader, number, geometry)):
        unread = _logits(model, tokens)
        for linear in family.writers(sublayer):
            name, written = weight(linear)
            with _zeroed(written, 0, alone.row_indices(linear, number, geometry)):
                if not compare_logits(unread, _logits(model, tokens)).passed:
                    raise GateError(
                        f"The description of {family.model_type} is wrong about {name}: its rows of {sublayer.value} unit {unit} are not "
                        f"what {reader.name} reads in the columns of that unit.",
                        GUIDE,
                    )


def check_silence(model: PreTrainedModel, geometry: Geometry) -> None:
    """Whether a block of each kind hands its input on once all is zero that the description says it adds to the stream.

    Raises:
        GateError: names a block whose output is another.
    """
    family, tokens = geometry.family, gate_tokens(geometry.vocab, 2, 8, seed=3)
    kinds = {(block.mixer, block.feeds): number for number, block in enumerate(geometry.blocks)}
    for number in kinds.values():
        block = model.get_submodule(f"{family.blocks}.{number}")
        writing = [module for linear, _ in geometry.linears(geometry.blocks[number]) if linear.rows == (Axis.RESIDUAL,)
                   for module in block.get_submodule(linear.name).parameters()]  # fmt: skip
        writing += [block.get_parameter(part.name) for part, _ in geometry.carried(geometry.blocks[number]) if part.adds]
        seen: list[torch.Tensor] = []

        def note(_: torch.nn.Module, inputs: Any, output: Any, seen: list[torch.Tensor] = seen) -> None:
            seen.extend((inputs[0], output[0] if isinstance(output, tuple) else output))

        with ExitStack() as undo:
            for parameter in writing:
                undo.enter_context(_zeroed(parameter, 0, torch.arange(len(parameter))))
            undo.callback(block.register_forward_hook(note).remove)
            _logits(model, tokens)
        entered, left = seen
        if not torch.allclose(entered, left, atol=1e-6):
            raise GateError(
                f"The description of {family.model_type} is wrong about {family.blocks}.{number}: it adds to the stream although what it is "
                "said to add by is zero.",
                GUIDE,
            )


@contextmanager
def _zeroed(weight: torch.nn.Parameter, dimension: int, indices: torch.Tensor | None) -> Iterator[None]:
    assert indices is not None  # units are never along the residual stream
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
