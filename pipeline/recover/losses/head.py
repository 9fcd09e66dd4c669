"""The end of a causal language model apart from its body: from what enters the head to the logits, for any positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _Through(nn.Module):
    """In place of a block: hands its input on, unseen by who watches the block; says of itself what the block does."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)  # no module of this one

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"][0], name)

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The input."""
        return hidden


class Head:
    """The head of a model, and whatever the model does to its output (scales, soft caps), which is asked of the model itself.

    Once ``logits`` alone is used, the model's blocks may be without weights.
    """

    def __init__(self, model: Any, blocks: nn.ModuleList) -> None:
        """Of a causal language model and its decoder blocks, neither wrapped."""
        self._model, self._blocks = model, blocks
        self._through: dict[str, nn.Module] = {name: _Through(block) for name, block in blocks.named_children()}
        self._head: nn.Module = model.get_output_embeddings()

    @property
    def weight(self) -> nn.Parameter:
        """Shape (vocabulary, H)."""
        found = self._head.weight
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def trained(self) -> list[nn.Parameter]:
        """Its parameters that get gradients."""
        return [parameter for parameter in self._head.parameters() if parameter.requires_grad]

    def entering(self, run: Callable[[], Any]) -> torch.Tensor:
        """What enters the head, (N, S, H), while ``run`` calls the model once; the head itself sees the last position alone."""
        caught: list[torch.Tensor] = []

        def catch(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            caught.append(inputs[0])
            return (inputs[0][:, -1:],)

        self._hooked(catch, run)
        return caught[0]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Of what enters the head, (P, H): logits (P, vocabulary).

        The model is called with one token whose blocks do nothing, and ``states`` in place of what comes of it.
        """
        token = torch.zeros(1, 1, dtype=torch.long, device=states.device)
        found: list[torch.Tensor] = []

        def run() -> None:
            kept = self._blocks._modules
            self._blocks._modules = self._through
            try:
                found.append(self._model(input_ids=token, use_cache=False).logits[0])
            finally:
                self._blocks._modules = kept

        self._hooked(lambda *_: (states[None],), run)
        return found[0]

    def _hooked(self, hook: Callable[..., Any], run: Callable[[], Any]) -> None:
        handle = self._head.register_forward_pre_hook(hook)
        try:
            run()
        finally:
            handle.remove()
