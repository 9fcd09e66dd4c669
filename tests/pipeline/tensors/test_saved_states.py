"""States that wait: in memory or in a file they come back as they were, and looking at them leaves them there."""

from __future__ import annotations

import pytest
import torch

from pipeline.tensors.saved_states import saved_states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [0, 100, 10**6])
def test_what_is_looked_at_stays(dtype: torch.dtype, limit: int) -> None:
    states = [torch.randn(4, 5).to(dtype) for _ in range(4)]
    with saved_states(limit) as saved:
        for index, state in enumerate(states):
            saved.put((0, index), state)
        for index in (2, 0, 3, 1, 2):
            assert torch.equal(saved.look((0, index)), states[index])
        assert all(torch.equal(saved.take((0, index)), state) for index, state in enumerate(states))
        with pytest.raises(KeyError):
            saved.look((0, 0))
