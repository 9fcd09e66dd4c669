"""What kind of GGUF is wanted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.common.slices import Slice

# llama.cpp's own quantisers that need no importance matrix.
Quantisation = Literal["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"]

K_BLOCK = 256  # numbers of a row that share a block in k-types; a row of another length gets a larger type


def is_k_type(kind: str | None) -> bool:
    """Whether the kind is one of k-quants."""
    return kind is not None and "_k" in kind


# A quantised file's perplexity over its checkpoint's, at most, by the bits per weight that the kind's name says.
PERPLEXITY_BARS = {"8": 1.02, "6": 1.05, "5": 1.1, "4": 1.25, "3": 2.0}


class GgufSlice(Slice):
    """A checkpoint into one GGUF file."""

    precision: Literal["fp32", "fp16", "bf16"] = Field("fp16", description="of the matrices; norms and biases are always fp32")
    quantise: Quantisation | None = Field(None, description="let llama.cpp quantise the file afterwards")
    perplexity_bar: float | None = Field(
        None, ge=1.0, le=1e6, description="what a quantised file's perplexity may be over the checkpoint's; None: by its bits"
    )

    @property
    def most_perplexity(self) -> float:
        """The bar that counts for a quantised file."""
        if self.perplexity_bar is not None or self.quantise is None:
            return self.perplexity_bar or 1.0
        return PERPLEXITY_BARS[self.quantise[1]]
