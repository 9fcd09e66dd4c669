"""What llama.cpp will compute of a GGUF's experts, against the modules of the model that transformers loads.

Tensors and keys are read by gguf's reader, and multiplied here as llama.cpp's source does for the architecture that the file names.
What should come out is asked of the modules: of the whole mixture for a few tokens, and of every expert for one, since a few tokens
go through a few experts. So it shows where experts, gate and up, or rows of the router are swapped, whichever table wrote them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from exporters.held import Reference
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError
from pipeline.rebuild.gguf_form import GgufForm

REPORT = "This is a fault of the conversion; please report it."
TOKENS, SEED = 24, 0
# Of the largest number of an output, by the type of the experts' matrices: what rounding them comes to, and in fp32 the order of sums.
BARS = {"F32": 1e-4, "F16": 1e-2, "BF16": 6e-2}
CLOSE_CALL = 1e-4  # of the score of the last expert that is chosen, to the next one: which of them computes is left to rounding
# Read in llama.cpp: what each architecture does where no key says otherwise.
SIGMOID = ("glm4moe",)
OVER_CHOSEN = ("gpt-oss",)
AS_THEY_ARE = ("olmoe", "qwen2moe")
READS_WEIGHTS = ("glm4moe",)  # the keys of a scale, and of whether weights are divided by their sum
READS_SCORES = ("glm4moe", "minimax-m2")
CLAMPED = ("gpt-oss",)  # its experts' function, arXiv 2508.10925
ALPHA, LIMIT = 1.702, 7.0

Key = Callable[..., Any]


def compare_mixtures(geometry: Geometry, reference: Reference, form: GgufForm, reader: gguf.GGUFReader, key: Key) -> None:
    """Compares every block's FFN, and each expert of it.

    Args:
        geometry: of the checkpoint.
        reference: as transformers loads it.
        form: as the file was written.
        reader: of the file.
        key: gives the value of a key of the architecture, or a default.

    Raises:
        GateError: a count or an output differs.
    """
    mixture = geometry.family.mixture
    assert mixture is not None
    _counts(geometry, reference, form, key)
    held = {tensor.name: tensor for tensor in reader.tensors}
    inputs = torch.randn(TOKENS, geometry.hidden, generator=torch.Generator().manual_seed(SEED))
    for place, number in enumerate(form.kept):
        layer = reference.model.get_submodule(f"{geometry.family.blocks}.{number}")
        file = FileFfn(held, f"blk.{place}", form.arch, key)
        if not geometry.blocks[number].experts:
            # The dense FFN of such a block is compared by its tensors: its names are gguf's own, as everywhere.
            if place >= int(key("leading_dense_block_count", 0)):
                raise GateError(f"The GGUF has experts in block {place}, where the checkpoint has a dense FFN.", REPORT)
            continue
        if place < int(key("leading_dense_block_count", 0)):
            raise GateError(f"The GGUF has a dense FFN in block {place}, where the checkpoint has experts.", REPORT)
        file.check_shared()
        experts = layer.get_submodule(mixture.experts)
        _compare(file.alone(inputs[0]), _alone(experts, inputs[0], geometry.blocks[number].experts), file, "an expert of block", place)
        clear = file.clear(inputs)
        if clear.any():  # where every choice is a close call the router's rows, which were compared, are all there is to say
            whole = layer.get_submodule(mixture.experts.rpartition(".")[0])
            _compare(file.whole(inputs[clear]), _output(whole, inputs[clear]), file, "the experts of block", place)


def _counts(geometry: Geometry, reference: Reference, form: GgufForm, key: Key) -> None:
    mixture, config = geometry.family.mixture, reference.model.config
    assert mixture is not None
    routed = next(number for number in form.kept if geometry.blocks[number].experts)
    down = reference.tensor(geometry.family.module(routed, mixture.weights[1]))
    expected = {"expert_count": down.shape[0], "expert_used_count": int(getattr(config, mixture.chosen_key))}
    for name, value in expected.items():
        if (found := key(name)) != value:
            raise GateError(f"The GGUF says {name} = {found}, and the checkpoint {value}.", REPORT)


@torch.inference_mode()
def _alone(experts: nn.Module, token: torch.Tensor, count: int) -> torch.Tensor:
    """Every expert's output of one token, unweighted, shape (experts, hidden)."""
    output: torch.Tensor = experts(token.expand(count, -1).contiguous(), torch.arange(count)[:, None], torch.ones(count, 1))
    return output


@torch.inference_mode()
def _output(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    found = module(inputs[None])
    output: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return output.reshape(inputs.shape)


def _compare(found: torch.Tensor, expected: torch.Tensor, file: FileFfn, what: str, place: int) -> None:
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= BARS[file.stored] * largest:
        raise GateError(
            f"The GGUF computes {what} {place} otherwise than the checkpoint: {difference:.2g} apart, where {largest:.2g} is the largest number.",
            REPORT,
        )


class FileFfn:
    """The FFN of a block, worked out from the file."""

    def __init__(self, held: dict[str, gguf.ReaderTensor], block: str, arch: str, key: Key) -> None:
        self.held, self.block, self.arch, self.key = held, block, arch, key

    @property
    def stored(self) -> str:
        """The type of the experts' matrices."""
        return self._found("ffn_down_exps.weight").tensor_type.name

    def whole(self, inputs: torch.Tensor) -> torch.Tensor:
        """The output for tokens of shape (tokens, hidden)."""
        chosen, weights = self._routed(inputs)
        rows = []
        for token, indices, shares in zip(inputs, chosen, weights, strict=True):
            rows.append(sum(share * self._expert(int(index), token) for index, share in zip(indices, shares, strict=True)))
        output = torch.stack(rows)  # type: ignore[arg-type] # at least one expert is chosen
        return output + self._shared(inputs) if self._has("ffn_down_shexp.weight") else output

    def check_shared(self) -> None:
        """Whether the keys say how wide the shared expert is.

        Raises:
            GateError: they say something else, and llama.cpp would not load the file.
        """
        if not self._has("ffn_down_shexp.weight"):
            return
        width = int(self._found("ffn_down_shexp.weight").shape[0])
        stated = self.key("expert_shared_feed_forward_length")
        if stated is None:
            stated = int(self.key("expert_shared_count", 0)) * int(self.key("expert_feed_forward_length", 0))
        if stated != width:
            raise GateError(f"The GGUF says that shared experts have {stated} channels, and they have {width}.", REPORT)

    def alone(self, token: torch.Tensor) -> torch.Tensor:
        """Every expert's output of a token, shape (experts, hidden)."""
        return torch.stack([self._expert(index, token) for index in range(int(self.key("expert_count")))])

    def clear(self, inputs: torch.Tensor) -> torch.Tensor:
        """For every token whether its choice is no close call."""
        choice, groups = self._choice(inputs)[1], int(self.key("expert_group_count", 0))
        clear = _is_clear(choice.softmax(-1) if self.arch in OVER_CHOSEN else choice, int(self.key("expert_used_count")))
        return clear & _is_clear(_of_groups(choice, groups), int(self.key("expert_group_used_count"))) if groups > 1 else clear

    def _routed(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen experts and their weights, both of shape (tokens, chosen)."""
        scores, choice = self._choice(inputs)
        groups = int(self.key("expert_group_count", 0))
        if groups > 1:
            choice = _best_groups(choice, groups, int(self.key("expert_group_used_count")))
        chosen = choice.topk(int(self.key("expert_used_count")), dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.arch in OVER_CHOSEN:
            weights = weights.softmax(-1)
        divided = self.key("expert_weights_norm", False) if self.arch in READS_WEIGHTS else self.arch not in AS_THEY_ARE
        if divided:
            weights = weights / weights.sum(-1, keepdim=True)
        return chosen, weights * float(self.key("expert_weights_scale", 1.0)) if self.arch in READS_WEIGHTS else weights

    def _choice(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What weights are made of, and what experts are chosen by, both of shape (tokens, experts)."""
        scores = inputs @ self._tensor("ffn_gate_inp.weight").T
        if self._has("ffn_gate_inp.bias"):
            scores = scores + self._tensor("ffn_gate_inp.bias")
        told = self.key("expert_gating_func") if self.arch in READS_SCORES else None
        if told == gguf.ExpertGatingFuncType.SIGMOID or (told is None and self.arch in SIGMOID):
            scores = scores.sigmoid()
        elif self.arch not in OVER_CHOSEN:
            scores = scores.softmax(-1)
        return scores, scores + self._tensor("exp_probs_b.bias") if self._has("exp_probs_b.bias") else scores

    def _expert(self, index: int, token: torch.Tensor) -> torch.Tensor:
        gate, up = (self._applied(f"ffn_{name}_exps", index, token) for name in ("gate", "up"))
        return self._applied("ffn_down_exps", index, self._gated(gate, up))

    def _gated(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if self.arch not in CLAMPED:
            return F.silu(gate) * up
        gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
        return gate * torch.sigmoid(ALPHA * gate) * (up + 1)

    def _shared(self, inputs: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self._tensor(f"ffn_{name}_shexp.weight") for name in ("gate", "up", "down"))
        output = (F.silu(inputs @ gate.T) * (inputs @ up.T)) @ down.T
        weighed = self._has("ffn_gate_inp_shexp.weight")
        return output * (inputs @ self._tensor("ffn_gate_inp_shexp.weight")).sigmoid()[:, None] if weighed else output

    def _applied(self, name: str, index: int, token: torch.Tensor) -> torch.Tensor:
        output = self._tensor(f"{name}.weight", index) @ token
        return output + self._tensor(f"{name}.bias", index) if self._has(f"{name}.bias") else output

    def _has(self, name: str) -> bool:
        return f"{self.block}.{name}" in self.held

    def _found(self, name: str) -> gguf.ReaderTensor:
        if not self._has(name):
            raise GateError(f"The GGUF has no {self.block}.{name}.", REPORT)
        return self.held[f"{self.block}.{name}"]

    def _tensor(self, name: str, index: int | None = None) -> torch.Tensor:
        """In fp32; one expert's part alone is read where ``index`` says which."""
        tensor = self._found(name)
        shape = [int(size) for size in reversed(tensor.shape)]
        data = tensor.data if index is None else tensor.data[index]
        shape = shape if index is None else shape[1:]
        if tensor.tensor_type is gguf.GGMLQuantizationType.BF16:
            return torch.from_numpy(np.array(data).view(np.uint16)).view(torch.bfloat16).float().reshape(shape)
        return torch.from_numpy(np.array(data)).float().reshape(shape)


def _of_groups(choice: torch.Tensor, groups: int) -> torch.Tensor:
    """How good each group is, shape (tokens, groups): as its two best experts together."""
    return choice.reshape(len(choice), groups, -1).topk(2, dim=-1).values.sum(-1)


def _best_groups(choice: torch.Tensor, groups: int, used: int) -> torch.Tensor:
    """Scores by which experts are chosen, −inf outside the best groups."""
    best = _of_groups(choice, groups).topk(used, dim=-1).indices
    allowed = torch.zeros(len(choice), groups, dtype=torch.bool).scatter_(1, best, True)
    return choice.reshape(len(choice), groups, -1).masked_fill(~allowed[:, :, None], float("-inf")).reshape(choice.shape)


def _is_clear(scores: torch.Tensor, used: int) -> torch.Tensor:
    """For every token whether the last that is chosen is well above the next, shape (tokens,)."""
    if used >= scores.shape[-1]:
        return torch.ones(len(scores), dtype=torch.bool)
    ranked = scores.sort(dim=-1, descending=True).values
    return ranked[:, used - 1] - ranked[:, used] > CLOSE_CALL * ranked[:, used - 1].abs()
