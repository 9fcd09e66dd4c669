"""How inputs vary about their mean, sequence by sequence: the statistic behind FLAP (arXiv 2312.11983, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pipeline.common.errors import TrimlineError


@dataclass
class Fluctuation:
    """What has been seen of C channels, in sequences of one length.

    Attributes:
        mean: over all tokens so far, shape (C,), fp32.
        between: Σ over sequences n ≥ 1 of n/(n+1) · Σ over tokens of (x − mₙ)², mₙ the mean up to and with sequence n; shape (C,).
        centred: Σ over all tokens of (x − mean)², shape (C,).
        sequences, tokens: how many.
    """

    mean: torch.Tensor
    between: torch.Tensor
    centred: torch.Tensor
    sequences: int = 0
    tokens: int = 0

    @classmethod
    def zeros(cls, channels: int, device: torch.device) -> Fluctuation:
        def empty() -> torch.Tensor:
            return torch.zeros(channels, dtype=torch.float32, device=device)

        return cls(empty(), empty(), empty())

    def add(self, inputs: torch.Tensor) -> None:
        """Adds sequences in their order; ``inputs`` is (B, S, C) in any float dtype."""
        for sequence in inputs.float():
            self._add(sequence)

    def _add(self, sequence: torch.Tensor) -> None:
        length, earlier = len(sequence), self.sequences
        own = sequence.mean(dim=0)
        within = (sequence - own).square().sum(dim=0)
        apart = own - self.mean
        self.mean += apart / (earlier + 1)
        # Σ (x − m)² about any m is Σ (x − own mean)² + S (own mean − m)².
        self.between += (within + length * (own - self.mean).square()) * (earlier / (earlier + 1))
        self.centred += within + length * earlier / (earlier + 1) * apart.square()
        self.sequences, self.tokens = earlier + 1, self.tokens + length

    @property
    def published(self) -> torch.Tensor:
        """What the released code calls fluctuation, shape (C,): ``between`` / (sequences − 1).

        Meant is a running variance. But its "old" mean is the tensor that has just been updated, the first sequence
        adds nothing, and squares are summed over a sequence's tokens: for stationary inputs it is about S times the
        variance.

        Raises:
            TrimlineError: only one sequence was seen.
        """
        if self.sequences < 2:
            raise TrimlineError("FLAP's fluctuation needs two calibration windows or more.", "Give more windows, or fluctuation: variance.")
        return self.between / (self.sequences - 1)

    @property
    def variance(self) -> torch.Tensor:
        """Sample variance over all tokens, shape (C,)."""
        return self.centred / max(1, self.tokens - 1)

    def restricted(self, channels: torch.Tensor) -> Fluctuation:
        """The same of some of the channels."""
        return replace(self, mean=self.mean[channels], between=self.between[channels], centred=self.centred[channels])
