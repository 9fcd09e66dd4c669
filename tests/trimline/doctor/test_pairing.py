"""Which TensorRT and cuDNN go with onnxruntime-gpu, on arranged environments."""

from __future__ import annotations

import pytest

from trimline.doctor.pairing import pairing

GPU = {"onnxruntime-gpu": "1.31.1", "nvidia-cudnn-cu13": "9.20.0"}


@pytest.mark.parametrize(
    ("installed", "states", "word"),
    [
        (GPU | {"tensorrt-cu13": "10.16.1"}, ["ok", "ok"], "fits onnxruntime-gpu 1.31.1"),
        (GPU | {"tensorrt-cu13": "11.4.0.106"}, ["warn", "ok"], "links TensorRT 10"),
        (GPU | {"tensorrt-cu12": "10.16.1"}, ["warn", "ok"], "links CUDA 13"),
        (GPU, ["missing", "ok"], "no TensorRT"),
        ({"onnxruntime-gpu": "1.31.1", "nvidia-cudnn-cu12": "9.1.0", "tensorrt": "10.16.1"}, ["ok", "warn"], "nvidia-cudnn-cu12 9.1.0 is"),
        (GPU | {"tensorrt": "10.16.1", "nvidia-cudnn-cu13": "10.0"}, ["ok", "warn"], "cuDNN 9 is linked"),
        ({"onnxruntime-gpu": "1.20.1"}, ["warn"], "1.20.1"),
        ({"onnxruntime": "1.31.1", "tensorrt": "11.4"}, [], ""),
    ],
)
def test_pairs(installed, states, word):
    found = list(pairing(installed))
    assert [finding.state for finding in found] == states
    assert word in " ".join(finding.value for finding in found)
    assert all(finding.advice for finding in found if finding.state != "ok")
