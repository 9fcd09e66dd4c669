"""What removing experts costs, method by method: ``python -m benchmarks.studies.experts.compare MODEL CALIBRATION TEST OUT``.

Every method chooses on the same calibration windows, drawn anew for each draw; the loss is that of the model that cannot choose what went,
which is what the cut folder computes (the gate holds both to 1e-5 of the largest logit). Random choices differ by draw alone. Intervals
are of paired differences: of each window of the test text the loss, averaged over the draws, less REAP's.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.formulas.statistics import paired_difference
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.events import Events
from pipeline.live.loading import load_model, load_tokenizer
from pipeline.plan.selection import Selection
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.sources.windows import tokenize

WINDOW, CALIBRATION, TEST, AT_ONCE = (
    128,
    32,
    160,
    32,
)  # tokens of a window; windows that are calibrated on; of the test text, evenly over it; of these at once
REFERENCE = "reap"
STEPS: dict[str, dict[str, Any]] = {
    "frequency": {"method": "frequency"},
    "ean": {"method": "ean"},
    "man": {"method": "man"},
    REFERENCE: {"method": "reap"},
    "reap, as first published": {"method": "reap", "options": {"gates": "published"}},
    "reap, block by block": {"method": "reap", "sequential": True},
    "expert_loss": {"method": "expert_loss"},
    "expert_loss, first order": {"method": "expert_loss", "options": {"terms": "first"}},
    "expert_loss, Fisher term": {"method": "expert_loss", "options": {"terms": "second"}},
    "expert_loss, one by one": {"method": "expert_loss", "shots": 0},  # as many shots as experts that go
}


@dataclass
class Losses:
    """Mean loss of every window of the test text, draw by draw."""

    by_draw: list[list[float]] = field(default_factory=list)

    @property
    def per_window(self) -> list[float]:
        """Averaged over the draws."""
        return [fmean(values) for values in zip(*self.by_draw, strict=True)]

    @property
    def mean(self) -> float:
        return fmean(self.per_window)

    @property
    def spread(self) -> float:
        """Standard deviation over the draws."""
        return stdev(map(fmean, self.by_draw)) if len(self.by_draw) > 1 else 0.0


class Study:
    """One model, its texts as windows, and the losses of selections that were seen before."""

    def __init__(self, folder: Path, calibration: str, test: str) -> None:
        self.folder, self.checkpoint = folder, Checkpoint(folder)
        tokenizer = load_tokenizer(folder)
        self.calibration, tokens = tokenize(tokenizer, calibration), tokenize(tokenizer, test)
        starts = torch.linspace(0, len(tokens) - WINDOW, TEST).long().tolist()
        self.test = torch.stack([tokens[start : start + WINDOW] for start in starts])
        self.experts = self.checkpoint.geometry.blocks[0].experts
        self._known: dict[tuple[tuple[int, ...], ...] | None, list[float]] = {}

    def windows(self, draw: int) -> torch.Tensor:
        """Calibration windows of a draw."""
        numbers = random.Random(draw)
        starts = [numbers.randrange(len(self.calibration) - WINDOW) for _ in range(CALIBRATION)]
        return torch.stack([self.calibration[start : start + WINDOW] for start in starts])

    def chosen(self, step: dict[str, Any], gone: int, draw: int) -> Selection:
        """What a method keeps."""
        shots = {"shots": gone} if step.get("shots") == 0 else {}
        stated = step | shots | {"budget": {"expert": {"remove": gone / self.experts}}}
        return make_plan(self.model(), self.windows(draw), PruneSlice.model_validate({"steps": [stated]}), Events()).selection

    def at_random(self, gone: int, draw: int) -> Selection:
        """As many of every block, drawn."""
        numbers, selection = random.Random(1000 + draw), Selection.everything(self.checkpoint.geometry)
        for block in range(len(self.checkpoint.geometry.blocks)):
            selection = selection.with_experts(block, sorted(numbers.sample(range(self.experts), self.experts - gone)))
        return selection

    def losses(self, selection: Selection | None) -> list[float]:
        """Of every test window."""
        key = None if selection is None else selection.experts
        if key not in self._known:
            model = self.model()
            for block, kept in enumerate(() if selection is None else selection.experts or ()):
                model.keep_experts(block, kept)
            self._known[key] = window_losses(model.model, self.test)
        return self._known[key]

    def model(self) -> ShrinkingModel:
        """The dense model, anew."""
        return ShrinkingModel(load_model(self.folder, dtype=torch.float32), self.checkpoint)


@torch.inference_mode()
def window_losses(model: nn.Module, windows: torch.Tensor) -> list[float]:
    """Mean cross-entropy of each window (N, S), nats per predicted token."""
    found: list[float] = []
    for some in windows.split(AT_ONCE):
        logits = model(some[:, :-1], use_cache=False).logits
        found += cross_entropy(logits.transpose(1, 2), some[:, 1:], reduction="none").mean(dim=1).tolist()
    return found


def measured(study: Study, gone: int, draws: int) -> dict[str, Losses]:
    """Losses of every method where so many experts of every block go."""
    found = {name: Losses() for name in ("random", *STEPS)}
    for draw in range(draws):
        found["random"].by_draw.append(study.losses(study.at_random(gone, draw)))
        for name, step in STEPS.items():
            found[name].by_draw.append(study.losses(study.chosen(step, gone, draw)))
        print(f"{gone} of {study.experts} gone, draw {draw + 1} of {draws}", flush=True)
    return found


def rows(dense: float, found: dict[str, Losses]) -> Iterator[str]:
    """Lines of a table, the best first."""
    reference = found[REFERENCE].per_window
    for name, losses in sorted(found.items(), key=lambda item: item[1].mean):
        apart = paired_difference(reference, losses.per_window)
        less = "" if name == REFERENCE else f"{apart.mean:+.3f} ({apart.low:+.3f} to {apart.high:+.3f})"
        yield f"| {name} | {losses.mean:.3f} | {losses.mean - dense:+.3f} | {losses.spread:.3f} | {less} |"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, what in (("model", "a mixture"), ("calibration", "text"), ("test", "text"), ("out", "table and figures go into this folder")):
        parser.add_argument(name, type=Path, help=what)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--remove", type=float, nargs="+", default=[0.25, 0.5])
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(given.model, given.calibration.read_text(encoding="utf-8"), given.test.read_text(encoding="utf-8"))
    dense = fmean(study.losses(None))
    lines, figures = [f"Dense: {dense:.3f} nats per token."], {"dense": [study.losses(None)]}
    for share in given.remove:
        gone = round(share * study.experts)
        found = measured(study, gone, given.draws)
        head = "| method | loss | over dense | between draws | less REAP's, 95 % |"
        lines += ["", f"{gone} of {study.experts} experts gone:", "", head, "|---|---|---|---|---|", *rows(dense, found)]
        figures |= {f"{gone}/{name}": losses.by_draw for name, losses in found.items()}
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (given.out / "losses.json").write_text(json.dumps(figures), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
