"""The systems that the results command compares, and how each is asked for the same thing.

One definition for all: a fraction of the decoder's linear parameters. Which units a system may take for it is its own
affair, and what it would itself call that stands beside it. FFN widths are multiples of 64 for all of them, so that no
system is slower for widths that kernels do not like; a system's own rounding would only change the fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.studies.systems.asking import (
    TWO_FOUR,
    Steps,
    anywhere,
    every_block_alike,
    every_ffn_alike,
    ffn_alone,
    pooled,
    two_four,
    whole_blocks,
)
from pipeline.architecture.geometry import Geometry
from pipeline.architecture.profile import Profile
from pipeline.architecture.spaces import Space
from pipeline.prune.recipe import PruneSlice, PruneStep
from pipeline.sources.recipe import CalibrationWindows

SURGEON_SHOTS = 5
# Weights whose correlations are solved for at once; 2000 are published. A row that loses more is solved for whole all the same.
SURGEON_TOGETHER = 500
OURS, OURS_FFN = "trimline", "trimline_ffn"
ALL_OURS = (OURS, OURS_FFN)  # the others are published
SURGEON = "llm_surgeon"
Removed = Mapping[str, float]  # what went, in every definition (``removed_in_every_definition``)


@dataclass(frozen=True)
class System:
    """One system.

    Attributes:
        name: in file names and for ``--only``.
        title: in tables.
        smaller: the steps that remove a fraction of the decoder's linear parameters; None where it has no units.
        own: what it calls sparsity, said of a result.
        sparse: the step that makes all linears 2:4; None where it has none.
        zeroing: the step that makes a fraction of their weights zero, where there is no ``smaller``: shapes and speed stay.
        through: the fraction at which its one run of ``shots`` ends, where the sizes on the way are models of that run, as
            its paper reports them; None where every size is a run of its own.
        shots: of that run.
    """

    name: str
    title: str
    smaller: Steps | None = None
    own: Callable[[Removed], str] = lambda removed: ""
    sparse: PruneStep | None = None
    zeroing: Callable[[float], PruneStep] | None = None
    through: float | None = None
    shots: int = 1


@dataclass(frozen=True)
class SystemRow:
    """One line of the table: a system at a size.

    Attributes:
        remove: fraction of the decoder's linear parameters; None for 2:4 and for the dense model.
    """

    system: System
    remove: float | None = None

    @property
    def is_dense(self) -> bool:
        return self.remove is None and self.system.sparse is None

    @property
    def is_sparse(self) -> bool:
        """Zeros: 2:4, or as many as the system puts where it likes."""
        return not self.is_dense and (self.remove is None or self.system.smaller is None)

    @property
    def size(self) -> str:
        """What was asked for, for people."""
        return "–" if self.is_dense else TWO_FOUR if self.remove is None else size_text(self.remove)

    @property
    def name(self) -> str:
        """In file names: ``cfsp-0.3``, ``wanda-2to4``, ``dense``."""
        if self.is_dense:
            return self.system.name
        return f"{self.system.name}-{'2to4' if self.remove is None else f'{self.remove:g}'}"

    @property
    def shot(self) -> int | None:
        """After which shot of the system's one run this size is reached; None where it has a run of its own."""
        if self.system.through is None or self.remove is None:
            return None
        shot = self.remove / self.system.through * self.system.shots
        return round(shot) if abs(shot - round(shot)) < 1e-6 and round(shot) <= self.system.shots else None

    @property
    def profile(self) -> Profile:
        """Shapes stay as they are with zeros."""
        return Profile.UNIFORM if self.is_sparse else Profile.FREE

    def recipe(self, geometry: Geometry, calibration: CalibrationWindows) -> PruneSlice | None:
        """What the prune stage is given, for the whole run where the size is one on its way; None for the dense model.

        Raises:
            TrimlineError: the system cannot be asked for that much.
        """
        if self.is_dense:
            return None
        if self.remove is None:
            assert self.system.sparse is not None
            return PruneSlice(calibration=calibration, steps=(self.system.sparse,))
        if self.system.smaller is None:
            assert self.system.zeroing is not None
            return PruneSlice(calibration=calibration, steps=(self.system.zeroing(self.remove),))
        asked = self.remove if self.shot is None else self.system.through
        assert asked is not None
        return PruneSlice(calibration=calibration, steps=self.system.smaller(geometry, asked))


def _channels(removed: Removed) -> str:
    return f"{percent(removed['ffn_channels'])} of the FFN channels"


def _channels_alike(removed: Removed) -> str:
    return f"{_channels(removed)}, in every block"


def _channels_alike_refitted(removed: Removed) -> str:
    return f"{_channels_alike(removed)}; published is the score, the update is ours"


def _alike(removed: Removed) -> str:
    return f"{percent(removed['kv_groups'])} of the heads, {percent(removed['ffn_channels'])} of the FFN, in every block"


def _alike_of_ours(removed: Removed) -> str:
    return f"{_alike(removed)}; published are single weights, the units are ours"


def _together(removed: Removed) -> str:
    return f"{percent(removed['decoder_parameters'])} of heads and FFN together"


def _of_weights(removed: Removed) -> str:
    return f"{percent(removed['decoder_parameters'])} of the linears' weights; published are rows and columns of each, the units are ours"


def _dropped(removed: Removed) -> str:
    return f"{percent(removed['blocks'])} of the blocks"


def size_text(remove: float) -> str:
    """``20 %``, ``12.5 %``."""
    return f"{100 * remove:.3g} %"


def percent(fraction: float) -> str:
    """``12.5 %``."""
    return f"{fraction:.1%}".replace("%", " %")


DENSE = System("dense", "dense")
SYSTEMS = (
    System("magnitude", "magnitude", every_block_alike("magnitude"), _alike, two_four("magnitude")),
    System("wanda", "Wanda", sparse=two_four("wanda"), zeroing=anywhere("wanda")),
    System("wanda_sp", "Wanda-sp", every_block_alike("wanda_sp"), _alike),
    System("sparsegpt", "SparseGPT", sparse=two_four("sparsegpt"), zeroing=anywhere("sparsegpt")),
    System("gblm", "GBLM-Pruner", every_block_alike("gblm"), _alike_of_ours, two_four("gblm")),
    System("flap", "FLAP", pooled("flap", compensation="bias"), _together),
    System("cfsp", "CFSP", ffn_alone("cfsp"), _channels),
    System("taylor", "Taylor", every_ffn_alike("taylor"), _channels_alike),
    System("taylor_ls", "Taylor, least squares", every_ffn_alike("taylor", compensation="least_squares"), _channels_alike_refitted),
    System(
        SURGEON,
        "LLM Surgeon, reduced",
        pooled(SURGEON, shots=SURGEON_SHOTS, compensation="least_squares"),
        _of_weights,
        two_four(SURGEON, shots=SURGEON_SHOTS, options={"together": SURGEON_TOGETHER}),
        through=0.5,
        shots=SURGEON_SHOTS,
    ),
    System("shortgpt", "ShortGPT", whole_blocks("block_influence", options={"measure": "cosine"}), _dropped),
    System("laco", "LaCo", whole_blocks("laco"), _dropped),
    System(OURS, "Trimline", pooled(OURS), _together),
    System(OURS_FFN, "Trimline, FFN alone", pooled(OURS, spaces=(Space.FFN,)), _channels),
)


def rows_of(systems: tuple[System, ...], sizes: tuple[float, ...], ours: tuple[float, ...], sparse: bool = True) -> list[SystemRow]:
    """The dense model, then every system at every size, sizes ascending; 2:4 last, if at all. ``ours`` are further sizes of our own."""
    rows = [SystemRow(DENSE)]
    for size in sorted({*sizes, *ours}):
        rows += [SystemRow(s, size) for s in systems if (s.smaller or s.zeroing) and (size in sizes or (s.name == OURS and size in ours))]
    return rows + [SystemRow(s) for s in systems if s.sparse and sparse]
