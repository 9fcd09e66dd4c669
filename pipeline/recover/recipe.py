"""This room's slice of the recipe: how the smaller model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.common.slices import Count, Fraction, Slice


class LoRASlice(Slice):
    """Low-rank adapters beside the projections, merged into them at the end."""

    rank: Annotated[int, Field(ge=1, le=2**16)] = Field(16, description="of every adapter, or its mean over the blocks")
    alpha: float = Field(32.0, gt=0.0, le=1e6, description="what an adapter adds is scaled by alpha / rank")
    dropout: Fraction = 0.0
    targets: tuple[Literal["attention", "ffn"], ...] = Field(("attention", "ffn"), min_length=1, description="whose projections")
    rank_by: Literal["uniform", "importance"] = Field("uniform", description="importance: our reading of CFSP's idea, the sum kept")
    more_to: Literal["important", "pruned"] = Field("important", description="which blocks get more by importance")


class RecoverSlice(Slice):
    """Training of the smaller model."""

    kind: Literal["lora", "full"] = Field("lora", description="adapters that are merged, or every weight")
    loss: Literal["distillation", "text"] = Field(
        "distillation", description="KL divergence to the dense model, or the text's cross-entropy"
    )
    embeddings: Literal["auto", "frozen", "trained"] = Field(
        "auto", description="token table and head under kind 'full': frozen where they are one, or as it says"
    )
    routers: Literal["frozen", "trained"] = Field(
        "frozen", description="of a mixture under kind 'full': what chooses experts; adapters are never beside it"
    )
    temperature: float = Field(1.0, gt=0.0, le=1e3, description="of distillation")
    hidden_states: float = Field(0.0, ge=0.0, le=1e6, description="of distillation: weight of the distance between block outputs")
    steps: Count = Field(200, description="optimiser steps")
    batch: Count = Field(8, description="windows per step, over all devices")
    micro_batch: Count = Field(4, description="windows that one device holds at once; gradients are summed up to batch")
    learning_rate: float | None = Field(None, gt=0.0, le=10.0, description="at its height; 2e-3 for lora, 2e-4 for full")
    warm_up: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="of the learning rate after that")
    weight_decay: float = Field(0.0, ge=0.0, le=10.0)
    windows: Count | None = Field(None, description="different ones, gone through again and again; by default every step reads new ones")
    window: Annotated[int, Field(ge=2, le=10**6)] = 512
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(1, description="of the windows' starts, their order, adapters and dropout")
    held_out: Annotated[int, Field(ge=0, le=10**6)] = Field(
        8, description="windows from the texts' ends, not trained on; the state with their lowest loss is written"
    )
    evaluate_every: Count | None = Field(None, description="steps between looks at them; a tenth of the steps by default")
    patience: Count = Field(3, description="looks in a row without a lower loss, after which training stops")
    teacher_states: Literal["auto", "kept", "computed"] = Field(
        "auto", description="what enters the dense model's head: once for every window and kept on disk, or for every batch anew"
    )
    save_every: Count = Field(50, description="steps between the states that a killed run goes on from")
    sharded: bool = Field(False, description="weights, gradients and optimiser shared by the processes that torchrun started (FSDP)")
    lora: LoRASlice = LoRASlice()

    @model_validator(mode="after")
    def _agrees(self) -> RecoverSlice:
        if self.loss == "text" and {"temperature", "hidden_states"} & self.model_fields_set:
            raise ValueError("'temperature' and 'hidden_states' belong to loss 'distillation'")
        if self.kind == "full" and "lora" in self.model_fields_set:
            raise ValueError("'lora' belongs to kind 'lora'")
        for name in ("embeddings", "routers"):
            if self.kind == "lora" and name in self.model_fields_set:
                raise ValueError(f"'{name}' belongs to kind 'full'")
        if self.teacher_states == "kept" and (self.loss == "text" or self.hidden_states or self.sharded):
            raise ValueError("'kept' needs loss 'distillation' without 'hidden_states', and no sharing")
        if not self.held_out and {"evaluate_every", "patience"} & self.model_fields_set:
            raise ValueError("'evaluate_every' and 'patience' belong to held_out windows")
        return self

    @property
    def peak_learning_rate(self) -> float:
        """The one given, or what suits the kind."""
        return self.learning_rate or (2e-3 if self.kind == "lora" else 2e-4)

    def trains_embeddings(self, tied: bool) -> bool:
        """Whether token table and head get gradients, of a model where they are one or not."""
        return self.kind == "full" and (self.embeddings == "trained" or (self.embeddings == "auto" and not tied))
