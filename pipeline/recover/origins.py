"""Which blocks of the dense model the blocks of a smaller checkpoint are; read from the plan.json beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json
from pipeline.plan.folder import PLAN


@dataclass(frozen=True)
class Origins:
    """Where a smaller model comes from.

    Attributes:
        blocks: per block, its number in the dense model.
        plan: what plan.json holds; empty where the folder has none.
    """

    blocks: tuple[int, ...]
    plan: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, blocks: int) -> Origins:
        """Of a checkpoint with so many blocks; without a plan they are taken to be all that there were.

        Raises:
            TrimlineError: the plan is damaged, or keeps another number of blocks.
        """
        if not (folder / PLAN).exists():
            return cls(tuple(range(blocks)), {})
        plan = read_json(folder / PLAN)
        try:
            kept = tuple(number for run in plan["blocks"].split() for number in _run(run))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrimlineError(f"{folder}/plan.json is no plan ({type(error).__name__}: {error}).", "Rebuild the checkpoint.") from None
        if len(kept) != blocks:
            raise TrimlineError(f"{folder}/plan.json keeps {len(kept)} blocks, and the model has {blocks}.", "Rebuild the checkpoint.")
        return cls(kept, plan)

    def demand_within(self, blocks: int) -> None:
        """Whether a dense model of so many blocks has them all.

        Raises:
            TrimlineError: it is another model.
        """
        if self.blocks and max(self.blocks) >= blocks:
            raise TrimlineError(
                f"The plan keeps block {max(self.blocks)}, and the dense model has {blocks} blocks.",
                "Name the dense model that the smaller one was made from.",
            )


def _run(text: str) -> range:
    """``"3-5"`` or ``"3"`` as plans write runs of numbers."""
    first, _, last = text.partition("-")
    return range(int(first), min(int(last or first), 2**16) + 1)
