"""torch itself as a runtime: the checkpoint's modules with transformers' cache, and with semi-structured weights where they are 2:4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.architecture.sparsity import two_four_fraction
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.live.loading import load_model


class TorchDecoder:
    """A checkpoint folder in torch.

    Args:
        folder: of the checkpoint.
        threads: of what runs on the processor.
        sparse: hold the projections that are 2:4 in torch's semi-structured form, which sparse tensor cores read.
        device: ``cuda`` computes in fp16, ``cpu`` in fp32.

    Raises:
        TrimlineError: torch sees no GPU, or projections are 2:4 and none has a shape that semi-structured tensors take.
    """

    def __init__(self, folder: Path, threads: int, *, sparse: bool = False, device: str = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise TrimlineError("This torch sees no CUDA device.", "Use --device cpu, or install a CUDA build of torch.")
        if sparse and device != "cuda":
            raise TrimlineError("torch's semi-structured weights exist on CUDA devices only.", "Measure runtime: torch.")
        torch.set_num_threads(threads)
        dtype = torch.float16 if device == "cuda" else torch.float32
        self._device = device
        self._model = load_model(Path(folder), dtype=dtype, device=device).eval()
        if sparse:
            make_sparse(self._model, Path(folder), torch.sparse.to_sparse_semi_structured)

    def empty(self, batch: int, capacity: int) -> Any:
        """None: transformers makes its cache in the first call."""
        return None

    @torch.inference_mode()
    def run(self, ids: Any, past: Any) -> tuple[Any, Any]:
        """Token ids (batch, tokens) and the cache so far into logits and the longer cache; finished when it returns."""
        found = self._model(input_ids=torch.from_numpy(ids).to(self._device), past_key_values=past, use_cache=True)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return found.logits, found.past_key_values


def make_sparse(model: nn.Module, folder: Path, convert: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """Replaces the weights of projections that are 2:4; returns how many.

    A shape that the form does not take stays dense, and so does a model that has no such projection.

    Raises:
        TrimlineError: there are such projections, and none could be replaced.
    """
    geometry = Checkpoint(folder).geometry
    paths = [
        geometry.family.module(number, linear.name) for number, block in enumerate(geometry.blocks) for linear, _ in geometry.linears(block)
    ]
    done, refused = 0, ""
    for path in paths:
        module: Any = model.get_submodule(path)
        if two_four_fraction(module.weight.detach()) != 1.0:
            continue
        try:
            module.weight = nn.Parameter(convert(module.weight.detach()), requires_grad=False)
            done += 1
        except (RuntimeError, ValueError) as error:
            refused = f" ({path}: {str(error).splitlines()[0]})"
    if refused and not done:
        raise TrimlineError(
            f"No projection of {folder} can be held as a semi-structured weight{refused}.",
            "Prune with pattern 2:4 and widths that are multiples of 64, or measure runtime: torch.",
        )
    return done
