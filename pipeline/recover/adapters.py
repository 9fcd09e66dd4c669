"""LoRA through peft: adapters beside the projections and the stacked experts of any family, and back into the weights.

An expert's adapter is a slice of its tensor's: gate and up, which are one tensor, share their first factor.

The only module that imports peft.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from pipeline.architecture.families import Sublayer
from pipeline.architecture.geometry import Geometry
from pipeline.common.errors import GateError, TrimlineError
from pipeline.recover.recipe import LoRASlice

NOTHING = "(?!)"  # as a regular expression
SPARSE = 0.05  # share of exact zeros; quantised checkpoints have a few by rounding, which are kept at the merge only
ADAPTER = "default"  # peft's name for the only one
PROBES = 32
BAR = 1e-5  # of the largest output of a projection, fp32


class MaskedLinear(lora.Linear):
    """peft's adapter of a linear layer, whose product is zero where the layer's weight is.

    Where a layer has many zeros, training computes with (W + scaling · (B A ⊙ [W ≠ 0])), which is what the merge
    leaves. Elsewhere it computes as peft does, and the merge drops the few entries that would fill zeros.
    """

    trains_masked = False

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """scaling · (B A ⊙ [W ≠ 0]), shape of W; what peft adds to W when it merges."""
        return super().get_delta_weight(adapter).masked_fill(self.dense.eq(0), 0)

    @property
    def dense(self) -> torch.Tensor:
        """W, shape (outputs, inputs)."""
        return cast(torch.Tensor, self.get_base_layer().weight)

    def forward(self, x: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """As peft's, or with the masked product."""
        if not self.trains_masked or self.disable_adapters or self.merged:
            return super().forward(x, *arguments, **named)
        result = self.base_layer(x)
        for adapter in self.active_adapters:
            result = result + linear(self.lora_dropout[adapter](x), self.get_delta_weight(adapter)).to(result.dtype)
        return result


def adapted(model: PreTrainedModel, geometry: Geometry, recipe: LoRASlice, ranks: Sequence[int]) -> PeftModel:
    """The model with one adapter per projection, and per expert and matrix of it, that the recipe names; only adapters are trainable.

    Args:
        model: with one rank in ``ranks`` per block.
        geometry: which projections its blocks have.
        recipe: alpha, dropout, targets.
        ranks: per block. The scaling is alpha / mean rank in all of them, so that a rank is capacity and nothing else.

    Raises:
        TrimlineError: no block has such projections.
    """
    family = geometry.family
    targets = [
        family.module(number, projection.name)
        for number, block in enumerate(geometry.blocks)
        for projection, _ in geometry.linears(block)
        if projection.sublayer.value in recipe.targets
    ]
    stacked = expert_tensors(geometry) if Sublayer.FFN.value in recipe.targets else []
    if not targets and not stacked:
        raise TrimlineError(f"No block has the projections of {recipe.targets[0]} any more.", "Change recover.lora.targets.")
    per_block = {rf"{re.escape(family.module(number, ''))}.*": rank for number, rank in enumerate(ranks)}
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules="|".join(map(re.escape, targets)) or NOTHING,
        target_parameters=stacked or None,
        rank_pattern=per_block,
        alpha_pattern={block: recipe.alpha * rank / recipe.rank for block, rank in per_block.items()},
        task_type="CAUSAL_LM",
    )
    config._register_custom_module({nn.Linear: MaskedLinear})
    with warnings.catch_warnings(), _names_as_they_are():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
        warnings.simplefilter("ignore", RuntimeWarning)  # patterns that no projection has, or no expert
        wrapped = get_peft_model(model, config)
    _demand_adapted(wrapped, targets, stacked)
    for _, layer in _layers(wrapped):
        layer.trains_masked = layer.dense.eq(0).double().mean().item() >= SPARSE
    return wrapped


@contextmanager
def _names_as_they_are() -> Iterator[None]:
    """Without what peft makes of names of a mixture's projections.

    It takes any gate_proj, up_proj and down_proj for experts as older transformers had them: adapters beside a shared expert or a dense
    block's FFN are dropped without a word, and the stacked gate and up get twice the rank.
    """
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:  # peft 0.18 takes names as they are
        yield
        return
    taken = "convert_peft_config_for_transformers"
    before = getattr(conversion, taken)
    setattr(conversion, taken, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(conversion, taken, before)


def _demand_adapted(model: PeftModel, targets: Sequence[str], stacked: Sequence[str]) -> None:
    """Whether exactly what was asked for has adapters: peft reads names in ways of its own."""
    modules = list(model.get_base_model().named_modules())
    wrappers = [(name, module) for name, module in modules if isinstance(module, lora.ParamWrapper)]
    found = {f"{name.replace('.base_layer', '')}.{module.parameter_name}" for name, module in wrappers}
    found |= {name for name, _ in _layers(model)}
    if found != {*targets, *stacked}:
        other = sorted(found ^ {*targets, *stacked})
        raise GateError(
            f"peft put adapters beside other tensors than those that were asked for; the first is {other[0]}.",
            "This is a fault of the recovery, not of the recipe; please report it with the recipe and the version of peft.",
        )


def expert_tensors(geometry: Geometry) -> list[str]:
    """Full names of the experts' matrices, stacked, in the model."""
    family = geometry.family
    weights = () if family.mixture is None else family.mixture.weights
    return [family.module(number, weight) for number, block in enumerate(geometry.blocks) if block.experts for weight in weights]


def merged(model: PeftModel) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model without adapters, and how far its projections are from those with them.

    Raises:
        GateError: a projection computes something else after the merge.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    probed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        for name, layer in _layers(model):
            probe = torch.randn(PROBES, layer.dense.shape[1], generator=generator).to(layer.dense)
            probed[name] = probe, _expected(layer, probe)
        asked = {name: _questions(model, experts, generator) for name, experts in _experts(model)}
        before = {name: experts(*asked[name]) for name, experts in _experts(model)}
        plain = model.merge_and_unload()
        gaps = {name: _gap(plain.get_submodule(name)(probe), expected) for name, (probe, expected) in probed.items()}
        gaps |= {name: _gap(plain.get_submodule(name)(*asked[name]), before[name]) for name in asked}
    worst = max(gaps, key=lambda name: gaps[name])
    if not gaps[worst] <= BAR:
        raise GateError(
            f"{worst} with its adapter merged computes something else: {gaps[worst]:.3g} of its largest output where {BAR:.0e} is allowed.",
            "This is a fault of the recovery, not of the recipe; please report it with the recipe.",
        )
    return plain, {"difference": gaps[worst], "bar": BAR, "projections": len(gaps), "passed": True}


def _expected(layer: MaskedLinear, probe: torch.Tensor) -> torch.Tensor:
    """What the layer computes with its adapter, less the entries that the merge drops by design."""
    computed = layer(probe)
    if layer.trains_masked:
        return computed
    whole = lora.Linear.get_delta_weight(layer, ADAPTER)
    return computed - linear(probe, whole - layer.get_delta_weight(ADAPTER))


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest output."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _questions(model: PeftModel, experts: lora.ParamWrapper, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Hidden states, indices and weights that every expert has a part in."""
    rows = max(PROBES, experts.num_experts)
    table = model.get_input_embeddings().weight
    hidden = torch.randn(rows, table.shape[1], generator=generator).to(table)
    return hidden, (torch.arange(rows, device=table.device) % experts.num_experts)[:, None], torch.ones(rows, 1).to(table)


def _experts(model: PeftModel) -> list[tuple[str, lora.ParamWrapper]]:
    """Adapted experts of every block by their name in the plain model; of several tensors the outermost wrapper computes all."""
    modules = model.get_base_model().named_modules()
    return [(name, module) for name, module in modules if isinstance(module, lora.ParamWrapper) and not name.endswith(".base_layer")]


def _layers(model: PeftModel) -> list[tuple[str, MaskedLinear]]:
    """Adapted projections by their name in the plain model."""
    modules = model.get_base_model().named_modules()
    return [(name, module) for name, module in modules if isinstance(module, MaskedLinear)]
