"""Optimisation profiles: every request fits, the optimum is the first one's."""

from __future__ import annotations

import pytest

from exporters.onnx.running.shapes import EngineRequest, graph_inputs, profiles_for
from pipeline.common.errors import TrimlineError

INPUTS = {
    "input_ids": ("batch", "sequence"),
    "attention_mask": ("batch", "total"),
    "past_key_values.3.key": ("batch", 2, "past", 16),
}


def fits(shape: tuple[int, ...], ranges: tuple) -> bool:
    least, _, most = ranges
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


@pytest.mark.parametrize(
    "requests", [[EngineRequest(512)], [EngineRequest(128, 17), EngineRequest(512, 1, 4)], [EngineRequest(1, 64)], [EngineRequest(7, 2, 3)]]
)
def test_every_call_of_every_request_fits(requests):
    prefill, decode = profiles_for(INPUTS, requests)
    for request in requests:
        calls = [(prefill, request.prompt, 0)] + [(decode, 1, request.prompt + step) for step in range(request.output - 1)]
        for profile, sequence, past in calls:
            assert fits((request.batch, sequence), profile.shapes["input_ids"])
            assert fits((request.batch, past + sequence), profile.shapes["attention_mask"])
            assert fits((request.batch, 2, past, 16), profile.shapes["past_key_values.3.key"])


def test_the_optimum_is_the_first_request():
    prefill, decode = profiles_for(INPUTS, [EngineRequest(512, 1, 2), EngineRequest(128, 17)])
    assert prefill.shapes["input_ids"] == ((1, 1), (2, 512), (2, 512))
    assert prefill.shapes["past_key_values.3.key"][1] == (2, 2, 0, 16)
    assert decode.shapes["past_key_values.3.key"][1] == (1, 2, 135, 16)  # in the middle of the steps
    assert decode.shapes["attention_mask"][1] == (1, 136)
    for profile in (prefill, decode):
        assert all(a <= b <= c for shapes in profile.shapes.values() for a, b, c in zip(*shapes, strict=True))


def test_inputs_of_an_exported_graph(sparse_onnx):
    found = graph_inputs(sparse_onnx / "model.onnx")
    assert found["past_key_values.2.key"] == ("batch", 2, "past", 16)
    assert "past_key_values.1.key" not in found
    assert len(profiles_for(found, [EngineRequest(8)])) == 2


def test_an_axis_of_another_name_is_refused():
    with pytest.raises(TrimlineError, match="'length'"):
        profiles_for({"input_ids": ("batch", "length")}, [EngineRequest(8)])
