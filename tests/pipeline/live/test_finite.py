"""Numbers that are not finite: what they come from is named, and the remedy fits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipeline.common.errors import TrimlineError
from pipeline.live.finite import demand_finite

BAD = [torch.ones(3), torch.tensor([1.0, math.nan])]


def model(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).to(dtype)


def said(live: nn.Module) -> str:
    with pytest.raises(TrimlineError) as caught:
        demand_finite(BAD, "The sums of block 7", live)
    assert str(caught.value).startswith("The sums of block 7 are not finite: ")
    return str(caught.value)


def test_what_is_finite_passes() -> None:
    demand_finite([torch.ones(2), torch.zeros(0), torch.tensor([torch.finfo(torch.float32).max])], "The sums", model(torch.float32))


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "NaN"), (-math.inf, "Inf")])
def test_the_tensor_is_named(value: float, kind: str) -> None:
    live = model(torch.float32)
    live.get_parameter("1.weight").data[0, 1] = value
    assert f"the tensor 1.weight holds {kind} in float32. Fetch the checkpoint again" in said(live)


def test_values_that_only_a_narrow_dtype_cannot_hold_have_another_remedy() -> None:
    live = model(torch.float32)
    live.get_parameter("0.bias").data[0] = 1e6
    assert "the tensor 0.bias holds Inf in float16. Measure in float32: --dtype float32, if" in said(live.half())
    live = model(torch.float16)
    live.get_parameter("0.bias").data[0] = math.nan
    assert "--dtype" not in said(live)


def test_overflow_is_said_with_a_remedy_that_helps() -> None:
    assert "overflow in float16. Measure in float32: --dtype float32." in said(model(torch.float16))
    for dtype in (torch.float32, torch.bfloat16):  # float32 reaches no further than bfloat16
        assert "--dtype" not in said(model(dtype))


def test_blocks_that_are_not_in_memory_are_passed_over() -> None:
    assert "overflow in float32" in said(model(torch.float32).to("meta"))
