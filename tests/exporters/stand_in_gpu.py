"""In place of a GPU: what is made for its memory, or bound there, lies in the processor's, and is written down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_inference_collection import IOBinding, OrtDevice, OrtValue

from exporters.onnx.running import providers
from exporters.onnx.running.placement import SHAPE_OPERATORS
from exporters.onnx.runtime import CPU, CUDA, TENSORRT


class Elsewhere:
    """A session on the processor that says of its nodes where they run, as one on a GPU would."""

    def __init__(self, session: Any, providers: list[str], left: set[str]) -> None:
        self._session, self._providers, self._left = session, providers, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [*self._providers, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [node for part in self._session.get_provider_graph_assignment_info() for node in part.get_nodes()]
        places = [CPU if node.op_type in self._left else CUDA for node in nodes]
        return [SimpleNamespace(ep_name=place, get_nodes=lambda node=node: [node]) for place, node in zip(places, nodes, strict=True)]


class StandInGpu:
    """ONNX Runtime as it is with a GPU, but for the GPU.

    Attributes:
        left: operators that the CUDA provider leaves to the processor.
        inputs: per input the address that was bound last, and whether a tensor of the GPU's is there.
        outputs: per output the same, or the device that ONNX Runtime was told to put it on.
        options: of every session's providers.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = set(SHAPE_OPERATORS)
        self.inputs: dict[str, tuple[int, bool]] = {}
        self.outputs: dict[str, tuple[int, bool] | str] = {}
        self.options: list[list[dict[str, str]]] = []
        self._there: set[int] = set()
        self._opened, self._shared, self._made = onnxruntime.InferenceSession, OrtValue.ortvalue_from_numpy, OrtDevice.make
        self._typed, self._bound = OrtValue.ortvalue_from_shape_and_type, IOBinding.bind_output
        monkeypatch.setattr(providers, "cuda_devices", lambda: ["a GPU"])
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", self._open)
        monkeypatch.setattr(OrtDevice, "make", lambda name, *more: self._made("cpu", 0))
        monkeypatch.setattr(OrtValue, "ortvalue_from_numpy", self._from_numpy)
        monkeypatch.setattr(OrtValue, "ortvalue_from_shape_and_type", self._of_shape)
        for kind, written in (("input", self.inputs), ("output", self.outputs)):
            self._watch(monkeypatch, f"bind_ortvalue_{kind}", written)
        monkeypatch.setattr(IOBinding, "bind_output", self._bind_output())

    def _open(self, model: Any, options: Any, providers: list[str], provider_options: list[dict[str, str]], **more: Any) -> Elsewhere:
        self.options.append(provider_options)
        return Elsewhere(self._opened(model, options, providers=[CPU], **more), providers, self.left)

    def _from_numpy(self, array: np.ndarray, device: str = "cpu", number: int = 0) -> Any:
        return self._shared(array) if device == "cpu" else self._keep(self._shared(array.copy()))

    def _of_shape(self, shape: tuple[int, ...], kind: Any, device: str = "cpu", number: int = 0) -> Any:
        value = self._typed(shape, kind, device, number)
        return value if device == "cpu" else self._keep(value)

    def _keep(self, value: Any) -> Any:
        self._there.add(value.data_ptr())
        return value

    def _watch(self, monkeypatch: pytest.MonkeyPatch, method: str, written: dict[str, Any]) -> None:
        real = getattr(IOBinding, method)

        def bind(binding: Any, name: str, value: Any) -> None:
            written[name] = (value.data_ptr(), value.data_ptr() in self._there)
            real(binding, name, value)

        monkeypatch.setattr(IOBinding, method, bind)

    def _bind_output(self) -> Any:
        def bind(binding: Any, name: str, device: str = "cpu", *more: Any) -> None:
            self.outputs[name] = device
            self._bound(binding, name, device, *more)

        return bind
