"""The routers of a mixture in a live model: which experts they may not choose, and what they make of a token.

An expert that is not there cannot be chosen, and those that are chosen in its place share its weight. Zeros in its weights are something
else: it would be chosen and add nothing. So in a model that still holds it, −inf stands where the choice is made: among the router's
logits, or, where a bias is added to the scores before they are compared, in that bias, since a score of zero may win there; in both, where
these scores are a softmax, which without an expert gives the others more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.architecture.families import Family
from pipeline.live.blocks import blocks_of


def forbid(model: nn.Module, family: Family, gone: Mapping[int, Collection[int]]) -> None:
    """Makes routed experts impossible to choose, from now on.

    Args:
        model: a causal language model, or a larger one that holds it.
        family: of the language model.
        gone: numbers of experts, by number of their block; of a block that is named before, all that are gone.
    """
    blocks = blocks_of(model, family)
    for number, experts in gone.items():
        forbid_in(blocks[number], family, experts)


@torch.no_grad()
def forbid_in(block: nn.Module, family: Family, experts: Collection[int]) -> None:
    """``forbid`` in one block."""
    mixture, numbers = family.mixture, torch.tensor(sorted(experts), dtype=torch.long)
    assert mixture is not None
    if mixture.correction is None or mixture.sums_to_one:
        _watch_of(block.get_submodule(mixture.router)).gone = numbers
    if mixture.correction is None:
        return
    correction = _tensor(block, mixture.correction)
    if correction.device.type != "meta" and len(numbers):
        correction[..., numbers.to(correction.device)] = -torch.inf


@contextmanager
def forbidden(block: nn.Module, family: Family, experts: Collection[int]) -> Iterator[None]:
    """``forbid_in`` for as long as it lasts; nothing in a block without experts."""
    if not experts_in(block, family):
        yield
        return
    mixture = family.mixture
    assert mixture is not None
    watch = _watch_of(block.get_submodule(mixture.router))
    before = watch.gone
    correction = None if mixture.correction is None else _tensor(block, mixture.correction)
    values = None if correction is None else correction.detach().clone()
    forbid_in(block, family, experts)
    try:
        yield
    finally:
        watch.gone = before
        if correction is not None and values is not None:
            with torch.no_grad():
                correction.copy_(values)


def experts_in(block: nn.Module, family: Family) -> int:
    """How many routed experts a block has; 0 where its FFN is a dense one."""
    if family.mixture is None:
        return 0
    try:
        router = block.get_submodule(family.mixture.router)
    except AttributeError:
        return 0
    weight = router.weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


@contextmanager
def logits_noted(block: nn.Module, family: Family) -> Iterator[list[torch.Tensor]]:
    """A list that holds the router's logits (tokens, experts) of the block's latest call, for as long as it lasts."""
    assert family.mixture is not None
    noted: list[torch.Tensor] = []
    watch = _watch_of(block.get_submodule(family.mixture.router))
    watch.noted = noted
    try:
        yield noted
    finally:
        watch.noted = None


def _tensor(block: nn.Module, name: str) -> torch.Tensor:
    """A parameter or buffer of a block."""
    module, _, leaf = name.rpartition(".")
    found: torch.Tensor = getattr(block.get_submodule(module), leaf)
    return found


def _watch_of(router: nn.Module) -> _Watch:
    """The hooks of a router, made where it has none."""
    found = next((hook for hook in router._forward_pre_hooks.values() if isinstance(hook, _Watch)), None)  # noqa: SLF001 - no other way to ask
    if found is None:
        found = _Watch()
        router.register_forward_pre_hook(found)
        router.register_forward_hook(found.after, always_call=True)
    return found


class _Watch:
    """Hooks before and behind a router: while it runs, its one linear function is looked at. A copy of the model has its own."""

    def __init__(self) -> None:
        self.gone = torch.empty(0, dtype=torch.long)
        self.noted: list[torch.Tensor] | None = None
        self._modes: list[_Logits] = []

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._modes.append(_Logits(self))
        self._modes[-1].__enter__()

    def after(self, *_: Any) -> None:
        """Behind the router."""
        if self._modes:
            self._modes.pop().__exit__(None, None, None)

    def seen(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as the router goes on with them."""
        if len(self.gone):
            logits = logits.index_fill(-1, self.gone.to(logits.device), -torch.inf)
        if self.noted is not None:
            self.noted[:] = [logits.detach()]
        return logits


class _Logits(TorchFunctionMode):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return self._watch.seen(found) if func is nn.functional.linear else found
