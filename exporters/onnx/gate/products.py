"""Every product of a graph in fewer bits, against the same product of the checkpoint in fp32, on what a real text feeds it.

Perplexity averages over all products and so forgives one that is wrong. Here each is judged alone, by what rounding to its
format can do. A weight that is rounded to steps of ``s`` is off by an error of variance ``s² / 12``; the checkpoint's weights say
how large the steps have to be, the graph is not asked. Two numbers follow for each product Y = X Wᵀ and the graph's Ŷ:

- ``noise``: |Ŷ - Y| over what rounding would be expected to cause, for the inputs of a text. Offsets that are one off, or weights
  of another projection, raise it.
- ``scale``: <Ŷ, Y> / <Y, Y>, which is 1 but for what rounding takes away, for the directions that these inputs span, each as long as
  the others, so that no few of them drown the rest. Scales that are a few percent off move it, where the noise hides them. It is
  looked at for the whole product and for every output, since one row of scales may be wrong.

Inputs of tokens are brought to one length too, in which a product is linear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from exporters.onnx.gate.matching import Matching, Share
from exporters.onnx.gate.rounding import FormatRounding
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError
from pipeline.evaluate.gates import REPORT
from pipeline.live.untouched import parameter_of

TOKENS = 96  # of the text that are read: enough directions to tell a scale from noise
OUTPUTS = 4096  # rows of a weight that are looked at together
MOST_NOISE = 2.0  # of what is expected; quantisers that search for scales stay below 1, others below 1.3
SLACK = 5e-3  # in a scale: what inputs that are rounded to 8 bits do to it (1.3e-3 in a head of 49,152 outputs)
SIGMAS, SIGMAS_OF_ROWS = 5.0, 8.0  # of the whole product's scale, and of each output's, of which there are many
SUMS, TINY = 1e-9, 1e-30  # of |Y|²: what the order of sums does; instead of a division by zero
BITS = {"int4": 4, "int8": 8}


@dataclass(frozen=True)
class ProductForm:
    """How a graph was made: ``fused`` or ``portable``, and in which precision."""

    lowering: str
    precision: str


@dataclass
class ProductRecord:
    """What was found: the worst of each number, and where."""

    compared: int = 0
    noise: tuple[float, str] = (0.0, "")
    scale: tuple[float, str] = (0.0, "")
    wrong: list[str] = field(default_factory=list)

    def take(self, name: str, noise: float, scale: float, why: str) -> None:
        self.compared += 1
        self.noise = max(self.noise, (noise, name))
        self.scale = max(self.scale, (abs(scale - 1), name))
        if why:
            self.wrong.append(f"{name} ({why})")

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        worst = {"most noise": self.noise[0], "at": self.noise[1], "furthest scale": self.scale[0], "scale at": self.scale[1]}
        return {"compared": self.compared, "bar of noise": MOST_NOISE} | worst | {"passed": not self.wrong}


def compare_products(model: PreTrainedModel, geometry: Geometry, folder: Path, form: ProductForm, ids: torch.Tensor) -> ProductRecord:
    """Reads one row of tokens with the checkpoint in torch and, at each projection, asks the graph for the same product.

    Args:
        model: the checkpoint in fp32, whole or with weights that come when they are needed.
        geometry: of the checkpoint.
        folder: the export.
        form: how it was lowered.
        ids: token ids (tokens,); the first ``TOKENS`` are read.

    Raises:
        GateError: the graph's products are not those of the checkpoint, by number or by size.
    """
    matching, found = Matching(folder, form.lowering == "fused", geometry, BITS.get(form.precision, 0)), ProductRecord()
    blocks = enumerate(geometry.blocks)
    paths = {geometry.family.module(number, linear.name) for number, block in blocks for linear, _ in geometry.linears(block)}
    with _watched(model, {*paths, geometry.family.head}, matching, found), torch.no_grad():
        model(ids[None, :TOKENS], use_cache=False)
    if left := matching.unseen():
        raise GateError(f"The graph in {folder} has products that the checkpoint does not compute, first {left[0]}.", "Export it again.")
    return found


def demand_products(found: ProductRecord, folder: Path, precision: str) -> None:
    """Fails where a product is off.

    Raises:
        GateError: names the projections, the first four of them.
    """
    if found.wrong:
        more = f" and {len(found.wrong) - 4} more" if len(found.wrong) > 4 else ""
        raise GateError(
            f"{folder} ({precision}): {len(found.wrong)} of {found.compared} products are off by more than rounding does: "
            f"{', '.join(found.wrong[:4])}{more}.",
            REPORT,
        )


@contextmanager
def _watched(model: PreTrainedModel, paths: set[str], matching: Matching, found: ProductRecord) -> Iterator[None]:
    """While it lasts, every projection's input is also given to the graph's product."""

    def hook(path: str) -> Any:
        def judge(module: nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            given = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            given = given / given.norm(dim=1, keepdim=True).clamp_min(1e-12) * math.sqrt(given.shape[1])
            weight = parameter_of(module, "weight")
            for share in matching.shares(path, (weight.shape[0], weight.shape[1])):
                _judge(share, given, weight[share.rows].float(), found)

        return judge

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in sorted(paths)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _judge(share: Share, given: torch.Tensor, weight: torch.Tensor, found: ProductRecord) -> None:
    directions = torch.linalg.qr(given.T).Q.T * math.sqrt(given.shape[1])
    together = torch.cat([given, directions])
    candidate, variance = share.compute(together), share.rounding.input_variance(together)
    if not torch.isfinite(candidate).all():
        found.take(share.name, math.inf, math.inf, "NaN or Inf")
        return
    tokens = len(given)
    said = OutputSums.of(given, variance[:tokens], weight, candidate[:tokens], share.rounding)
    spanned = OutputSums.of(directions, variance[tokens:], weight, candidate[tokens:], share.rounding)
    noise, scale, allowed = said.noise, *spanned.scale
    why = ""
    if not noise <= MOST_NOISE:
        why = f"{noise:.3g} times the error that rounding makes"
    elif abs(scale - 1) > allowed:
        why = f"scaled by {scale:.3f}"
    elif (row := spanned.strange_output()) is not None:
        why = f"output {row} scaled by {(spanned.overlap[row] / spanned.energy[row]).item():.3f}"
    found.take(share.name, noise, scale, why)


@dataclass(frozen=True)
class OutputSums:
    """What is known of a product, per output: (outputs,) each.

    Attributes:
        energy, error, overlap: |Y|², |Ŷ - Y|², <Ŷ, Y>.
        expected: what ``error`` should be.
        spread: variance that ``overlap`` should have.
    """

    energy: torch.Tensor
    error: torch.Tensor
    overlap: torch.Tensor
    expected: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(
        cls, given: torch.Tensor, of_inputs: torch.Tensor, weight: torch.Tensor, candidate: torch.Tensor, rounding: FormatRounding
    ) -> OutputSums:
        """Sums over inputs (tokens, inputs), whose own errors have the variances ``of_inputs``."""
        parts = zip(*_by_output(given, of_inputs, weight, candidate, rounding), strict=True)
        return cls(*(torch.cat(part).double() for part in parts))

    @property
    def noise(self) -> float:
        """The error over the expected one; 0 where it is no more than what sums in another order do."""
        off = self.error.sum().item()
        return math.sqrt(off / max(self.expected.sum().item(), TINY)) if off > SUMS * self.energy.sum().item() else 0.0

    @property
    def scale(self) -> tuple[float, float]:
        """<Ŷ, Y> / <Y, Y>, and how far from 1 it may be: what is lost in rounding to the nearest, and what chance does."""
        whole = self.energy.sum().item()
        if not whole:
            return 1.0, 0.0
        chance = SIGMAS * math.sqrt(self.spread.sum().item())
        return self.overlap.sum().item() / whole, (self.error.sum().item() + chance) / whole + SLACK

    def strange_output(self) -> int | None:
        """The first output whose own scale is further from 1 than that."""
        each = self.energy.clamp_min(TINY)
        allowed = (self.error + SIGMAS_OF_ROWS * self.spread.sqrt()) / each + SLACK
        beyond = ((self.overlap / each - 1).abs() > allowed) & (self.energy > 1e-6 * self.energy.mean())
        return int(beyond.nonzero()[0]) if beyond.any() else None


def _by_output(
    given: torch.Tensor, of_inputs: torch.Tensor, weight: torch.Tensor, candidate: torch.Tensor, rounding: FormatRounding
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Per output: |Y|², |Ŷ - Y|², <Ŷ, Y>, what the second is expected to be, and the variance of the third."""
    squares = given.square().sum(0)
    for at in range(0, len(weight), OUTPUTS):
        part = weight[at : at + OUTPUTS]
        exact, there = given @ part.T, candidate[:, at : at + OUTPUTS]
        variance = rounding.weight_variance(part)
        pull = exact.T @ given  # how an error of each weight shows in <Ŷ, Y>
        expected = variance @ squares + part.square() @ of_inputs.sum(0)
        spread = (variance * pull.square()).sum(1) + ((exact.T.square() @ of_inputs) * part.square()).sum(1)
        yield exact.square().sum(0), (there - exact).square().sum(0), (there * exact).sum(0), expected, spread
