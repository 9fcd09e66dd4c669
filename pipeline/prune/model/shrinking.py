"""A model while it is being pruned: live weights for measuring, exact weights for updating, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from pipeline.architecture.families import Axis, Linear, Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.obstacles import check_stream
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.live.blocks import blocks_of
from pipeline.live.finite import demand_finite, is_finite
from pipeline.live.paging import Paging
from pipeline.live.routing import forbid_in
from pipeline.plan.places import place_of
from pipeline.plan.selection import Selection, select
from pipeline.tensors.changes import Changes, Selected

WAITING_SHARE = 0.1  # of the memory: changed tensors, and as much again of what sweeps need later, of a model whose blocks are paged


class ShrinkingModel:
    """Removed units are zeros in the live model, so that numbering stays the original one in every step.

    Where the live model's blocks are paged, a block gets what has changed when it is read.

    Attributes:
        model: the live model, in the dtype that measures.
        paging: which of its blocks is in memory; None where all are.
        checkpoint: the dense weights, in their own dtype.
        geometry: sizes of the dense model.
        selection: what is left.
        sparse: projections whose single weights were pruned, and in which pattern; their zeros are the mask.
        biases: projections, by their names inside a block, that were given a bias which the dense model has not.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, paging: Paging | None = None) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.paging = paging
        self.geometry = checkpoint.geometry
        self.selection = Selection.everything(self.geometry)
        self.sparse: dict[str, str] = {}
        self.biases: set[str] = set()
        self._changed = Changes(self.waiting_bytes)
        if paging is not None:
            paging.overlay = self._restore

    @property
    def waiting_bytes(self) -> int | None:
        """How much of what a sweep needs again later may wait in memory; None where the model itself is there."""
        return None if self.paging is None else self.paging.options.share(WAITING_SHARE)

    def twin(self) -> nn.Module:
        """The live model as it is now, whatever happens to this one later."""
        if self.paging is None:
            return deepcopy(self.model)
        model, paging = self.paging.again()
        twin = ShrinkingModel(model, self.checkpoint, paging)
        twin.selection, twin._changed = self.selection, self._changed.copy()
        if self.selection.residual is not None:
            twin.keep_residual(self.selection.residual)
        return twin.model

    @property
    def current(self) -> Geometry:
        """Sizes of what is left."""
        return self.selection.geometry(self.geometry)

    def tensor(self, name: str) -> torch.Tensor:
        """A dense-shaped tensor by its full name, fp32, with the updates so far; removed columns hold old values.

        Raises:
            TrimlineError: it holds NaN or Inf.
        """
        if name in self._changed:
            return self._changed[name].float()  # finite, or it would not have been stored
        found = self.checkpoint.tensor(name)
        self.checkpoint.demand_finite(name, found)
        return found.float()

    def demand_finite(self, tensors: Iterable[torch.Tensor], what: str) -> None:
        """Refuses NaN and Inf in what was computed from this model.

        Args:
            tensors: of any shape.
            what: they are, in the plural: "The scores of block 3".

        Raises:
            TrimlineError: one is not finite. Names the tensor of the checkpoint that is not, or else what overflows.
        """
        found = list(tensors)
        if not all(map(is_finite, found)):
            self.checkpoint.check_finite()
            demand_finite(found, what, self.model)

    def weight(self, block: int, linear: str) -> torch.Tensor:
        """A projection's weight, fp32, shape (rows, columns) in the original numbering; zero for channels that left the stream."""
        weight, stream = self.tensor(self.geometry.family.module(block, linear) + ".weight"), self.selection.stream
        if stream is not None:
            described = next(known for known in self.geometry.family.linears if known.name == linear)
            axis = 1 if described.columns is Axis.RESIDUAL else 0
            weight = weight.index_fill(axis, _others(stream, weight.shape[axis]).nonzero().flatten(), 0.0)
        return weight

    def bias(self, block: int, linear: str) -> torch.Tensor | None:
        """A projection's bias, fp32, shape (rows,) in the original numbering; None where it has none."""
        name = self.geometry.family.module(block, linear) + ".bias"
        return self.tensor(name) if name in self._changed or name in self.checkpoint.locations else None

    def keep_units(self, sublayer: Sublayer, block: int, kept: Sequence[int]) -> None:
        """Removes all other units of a sublayer: their rows and columns become zeros in the live model."""
        self.selection = self.selection.with_units(sublayer, block, kept)
        if self._is_live(block):
            self._silence_sublayer(block, sublayer)

    def keep_experts(self, block: int, kept: Sequence[int]) -> None:
        """Removes all other routed experts of a block: the live model cannot choose them."""
        self.selection = self.selection.with_experts(block, kept)
        if self._is_live(block):
            self._forbid(block)

    def keep_residual(self, kept: Sequence[int]) -> None:
        """Removes all other channels of the residual stream: nothing writes them in the live model, so they stay zero.

        Raises:
            TrimlineError: the family's norms do not allow it.
        """
        family = self.geometry.family
        check_stream(family, self.geometry.within)
        self.selection = replace(self.selection, residual=tuple(kept))
        for name in family.embeddings:
            self.model.get_parameter(f"{name}.weight").data[:, _others(self.selection.stream, self.geometry.hidden)] = 0
        for block in filter(self._is_live, range(len(self.geometry.blocks))):
            self._silence_stream(block)

    def keep_blocks(self, kept: Sequence[int]) -> None:
        """Removes all other blocks: their readers write nothing, so the residual stream passes unchanged."""
        for block in filter(self._is_live, set(self.selection.blocks) - set(kept)):
            self._silence_readers(block)
        self.selection = replace(self.selection, blocks=tuple(kept))

    def update_reader(
        self, sublayer: Sublayer, block: int, columns: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None
    ) -> None:
        """Replaces the columns of a reader.

        Args:
            sublayer, block: whose reader.
            columns: original indices, shape (K,).
            weight: new values, shape (R, K), fp32.
            shift: added to the bias, shape (R,), or None.
        """
        linear = self.geometry.family.reader(sublayer)
        name = self.geometry.family.module(block, linear.name)
        full = self.tensor(name + ".weight").clone()
        full[:, columns] = weight.to(full.device)
        self._store(name + ".weight", full)
        if self._is_live(block):
            self._copy(block, linear, "weight")
        if shift is not None:
            self.add_bias(block, linear.name, shift)

    def add_bias(self, block: int, linear: str, shift: torch.Tensor) -> None:
        """Adds to a projection's bias; where the dense model has none, the projection gets one in every block, zero elsewhere.

        Args:
            block, linear: whose; the name inside the block.
            shift: shape (rows,), fp32.
        """
        described = next(known for known in self.geometry.family.linears if known.name == linear)
        before = self.bias(block, linear)
        bias = shift.cpu() if before is None else before + shift.cpu()
        self._store(self.geometry.family.module(block, linear) + ".bias", bias)
        if self._is_live(block):
            self._copy(block, described, "bias")
        if not self.geometry.has_bias(described):
            self.biases.add(linear)

    def has_bias(self, linear: Linear) -> bool:
        """Whether a projection has a bias by now."""
        return self.geometry.has_bias(linear) or linear.name in self.biases

    def multiplier(self, sublayer: Sublayer) -> float:
        """What the stream takes of a sublayer's output."""
        return self.geometry.family.multiplier(sublayer, self.checkpoint.config)

    def bearer(self, block: int, sublayer: Sublayer) -> tuple[int, Sublayer] | None:
        """Block and kind of a sublayer that can add a constant in place of this one, which loses all its units, with the same result.

        Whoever read the stream with the constant reads it still, and nobody else does. So the two are neighbours: nothing that
        stays stands between them, and parallel ones read the same stream. The stream takes what both write, without a norm or
        a gate, and nothing of the one that goes stays: no routed experts, no mixer beside its heads. None where there is no such
        sublayer, or where it is of a carried kind, which takes no bias.
        """
        family = self.geometry.family
        shape = self.selection.shape(block, self.geometry).with_units(sublayer, 0)
        if not family.adds(sublayer) or shape.has(sublayer) or (sublayer is Sublayer.ATTENTION and family.has_beside):
            return None
        order = [(number, kind) for number in self.selection.blocks for kind in Sublayer]
        neighbours = order[: order.index((block, sublayer))][::-1]
        if sublayer is Sublayer.ATTENTION and family.is_parallel:
            neighbours.insert(0, (block, Sublayer.FFN))
        shapes = {number: self.selection.shape(number, self.geometry) for number in self.selection.blocks}
        found = next(((number, kind) for number, kind in neighbours if shapes[number].has(kind)), None)
        if found is None or not family.adds(found[1]):
            return None
        number, kind = found
        return found if shapes[number].is_ordinary(kind) and shapes[number].units(kind) else None

    def replace(self, name: str, value: torch.Tensor) -> None:
        """Gives any tensor of a block new values.

        Args:
            name: its full name.
            value: dense shape, fp32; rows and columns of removed units are ignored.
        """
        place = place_of(self.geometry.family, name)
        assert place is not None, "only tensors inside blocks are updated"
        self._store(name, value)
        if not self._is_live(place.block):
            return
        if isinstance(place.part, Linear):
            self._copy(place.block, place.part, name.rpartition(".")[2])
        else:
            self.model.get_parameter(name).data.copy_(self._changed[name])

    def silence(self, block: int) -> None:
        """Zeros in the live block for everything that is gone of it."""
        for sublayer in self.geometry.family.cuttable:
            self._silence_sublayer(block, sublayer)
        self._forbid(block)
        if block not in self.selection.blocks:
            self._silence_readers(block)

    def updates(self) -> Mapping[str, torch.Tensor]:
        """Every tensor whose values changed, in its final shape and the checkpoint's dtype, for what stays; each cut when asked for."""
        kept: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        for name in sorted(self._changed):
            place = place_of(self.geometry.family, name)
            if place is not None and place.stays(self.selection, self.geometry):
                rows, columns = place.indices(self.selection, self.geometry)
                kept[name] = partial(select, rows=rows, columns=columns)
        return Selected(self._changed.copy(), kept)

    def close(self) -> None:
        """Lets go of the file that changed tensors are in, where there is one."""
        self._changed.close()

    def _store(self, name: str, value: torch.Tensor) -> None:
        """What is not finite, or would not be in the checkpoint's dtype, is never written."""
        stored = name if name in self.checkpoint.locations else name.removesuffix("bias") + "weight"
        rounded = value.to(self.checkpoint.tensor(stored).dtype)
        if not is_finite(rounded):
            dtype = str(rounded.dtype).removeprefix("torch.")
            raise TrimlineError(
                f"The new values of {name} are not finite in {dtype}, which the checkpoint is stored in.",
                "Give a larger damping, or leave the compensation out; measure in float32 if you did not: --dtype float32.",
            )
        self._changed.put(name, rounded)

    def _silence(self, block: int, linear: Linear) -> None:
        """Zeros in the live projection where its rows or columns are gone."""
        live = self._live(block, linear)
        if linear.columns is not Axis.RESIDUAL:
            columns = self.selection.column_indices(linear, block, self.geometry)
            live.weight.data[:, _others(columns, live.weight.shape[1])] = 0
        rows = self.selection.row_indices(linear, block, self.geometry)
        if rows is not None:
            gone = _others(rows, live.weight.shape[0])
            live.weight.data[gone] = 0
            if live.bias is not None:
                live.bias.data[gone] = 0

    def _silence_sublayer(self, block: int, sublayer: Sublayer) -> None:
        """Zeros for the units of a sublayer that are gone; a kind without units has none."""
        if not self.geometry.blocks[block].is_ordinary(sublayer):
            return
        for linear in self.geometry.family.linears:
            if linear.sublayer is sublayer:
                self._silence(block, linear)
        if not self.selection.units(sublayer)[block]:
            _zero_bias(self._live(block, self.geometry.family.reader(sublayer)))

    def _silence_readers(self, block: int) -> None:
        """Nothing of a block reaches the residual stream."""
        for linear in self._writers(block):
            live = self._live(block, linear)
            live.weight.data.zero_()
            _zero_bias(live)
        for carried, _ in self._carried_writers(block):
            carried.data.zero_()

    def _forbid(self, block: int) -> None:
        """The live block's router cannot choose what is gone."""
        gone = set(range(self.geometry.blocks[block].experts)) - set(self.selection.experts_of(block))
        if gone:
            forbid_in(blocks_of(self.model, self.geometry.family)[block], self.geometry.family, gone)

    def _silence_stream(self, block: int) -> None:
        """Nothing of a block reaches the channels of the residual stream that are gone."""
        for linear in self._writers(block):
            self._silence(block, linear)
        gone = _others(self.selection.stream, self.geometry.hidden)
        for carried, axis in self._carried_writers(block):
            carried.data.index_fill_(axis, gone.to(carried.device), 0)

    def _writers(self, block: int) -> Iterator[Linear]:
        """The projections of a dense block that write into the residual stream."""
        return (linear for linear, _ in self.geometry.linears(self.geometry.blocks[block]) if linear.rows == (Axis.RESIDUAL,))

    def _carried_writers(self, block: int) -> Iterator[tuple[nn.Parameter, int]]:
        """Carried tensors of a block that write into it, each with the axis that counts its channels."""
        live = blocks_of(self.model, self.geometry.family)[block]
        parts = self.geometry.carried(self.geometry.blocks[block])
        return ((live.get_parameter(part.name), part.shape.index(Axis.RESIDUAL)) for part, _ in parts if part.adds)

    def _copy(self, block: int, linear: Linear, kind: str) -> None:
        """Gives the live projection its changed weight or bias, rounded as the checkpoint will hold it."""
        live, value = self._live(block, linear), self._changed[f"{self.geometry.family.module(block, linear.name)}.{kind}"]
        if kind == "bias" and live.bias is None:
            live.bias = nn.Parameter(live.weight.new_zeros(len(value)), requires_grad=live.weight.requires_grad)
        getattr(live, kind).data.copy_(value)
        self._silence(block, linear)

    def _restore(self, block: int) -> None:
        """Does to a block that was just read all that was done to the model so far."""
        family = self.geometry.family
        prefix = f"{family.blocks}.{block}."
        for name in (name for name in self._changed if name.startswith(prefix)):
            place = place_of(family, name)
            assert place is not None
            if isinstance(place.part, Linear):
                self._copy(block, place.part, name.rpartition(".")[2])
            else:
                self.model.get_parameter(name).data.copy_(self._changed[name])
        self.silence(block)

    def _is_live(self, block: int) -> bool:
        """Whether a block's tensors are in memory; those that are not will be as they should when they are read."""
        return self.paging is None or self.paging.holds(block)

    def _live(self, block: int, linear: Linear) -> nn.Linear:
        found = blocks_of(self.model, self.geometry.family)[block].get_submodule(linear.name)
        assert isinstance(found, nn.Linear)
        return found


def _zero_bias(linear: nn.Linear) -> None:
    if linear.bias is not None:
        linear.bias.data.zero_()


def _others(kept: torch.Tensor | None, size: int) -> torch.Tensor:
    gone = torch.ones(size, dtype=torch.bool)
    gone[kept] = False
    return gone
