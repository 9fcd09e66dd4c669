"""ONNX Runtime on a GPU: its CUDA and TensorRT providers, opened so that nothing falls back to the processor unnoticed.

ONNX Runtime lists providers that cannot start, and computes on the processor instead without a word. Here the provider
must be in the opened session, and fallback is forbidden. The CUDA provider itself keeps computations on shapes on the
processor, which that rule forbids too: then the session is opened again and asked where each node runs, and anything but
such a computation is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters.onnx.device import PAST, DeviceDecoder
from exporters.onnx.files import GRAPH
from exporters.onnx.placement import RECORD, check_places, places
from exporters.onnx.runtime import CPU, CUDA, TENSORRT, load_libraries, needs_runtime, provider_refusal
from exporters.onnx.sparsity import check_two_four, weight_patterns
from exporters.tensorrt.shapes import Request, graph_inputs, profiles_for
from pipeline.driver import cuda_devices
from pipeline.errors import TrimlineError

CHAINS = {"cpu": (CPU,), "cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}
FORBID = "session.disable_cpu_ep_fallback"
FORBIDDEN = "assigned to the default CPU EP"  # in ONNX Runtime's own error
SERVED = (Request(512, 513), Request(512, 1, 8))  # what the TensorRT provider's engine has room for, unless it is told
EXACT = {"use_tf32": "0"}
KINDS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bfloat16)": torch.bfloat16}


class ProviderDecoder(DeviceDecoder):
    """An exported folder in ONNX Runtime with the cache kept on the device.

    Args:
        folder: holds model.onnx.
        threads: of what runs on the processor.
        provider: ``cpu``, ``cuda`` or ``tensorrt``. Asking for one is demanding it.
        served: requests that are to come; the TensorRT provider builds its engine for these.

    Raises:
        TrimlineError: no GPU or no driver, a provider that cannot start, or products that would run on the processor.
    """

    def __init__(self, folder: Path, threads: int | None = None, provider: str = "cuda", served: Sequence[Request] = SERVED) -> None:
        needs_runtime()
        self.folder, self.provider = Path(folder), provider
        if provider != "cpu":
            demand_gpu(CHAINS[provider][0])
        self.device = "cpu" if provider == "cpu" else "cuda"
        graph = self.folder / GRAPH
        self.session = open_on(graph, provider, threads or 0, options_of(provider, graph, served))
        given = self.session.get_inputs()
        self.inputs = [value.name for value in given]
        self.caches = {value.name: (value.shape[1], value.shape[3], KINDS[value.type]) for value in given if value.name.startswith(PAST)}
        self._outputs = [(value.name, value.shape, KINDS[value.type]) for value in self.session.get_outputs()]
        self.vocab = int(self._outputs[0][1][2])

    def call(self, feeds: dict[str, Any], kind: str) -> dict[str, Any]:
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_input(name, self.device, 0, _numpy_type(value.dtype), tuple(value.shape), value.data_ptr())
        batch, sequence = feeds["input_ids"].shape
        total = feeds["attention_mask"].shape[1]
        outputs = {}
        for name, shape, dtype in self._outputs:
            sizes = (batch, shape[1], total, shape[3]) if len(shape) == 4 else (batch, 1 if shape[1] == 1 else sequence, shape[2])
            outputs[name] = torch.empty(sizes, dtype=dtype, device=self.device)
            binding.bind_output(name, self.device, 0, _numpy_type(dtype), sizes, outputs[name].data_ptr())
        try:
            binding.synchronize_inputs()
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise TrimlineError(f"ONNX Runtime failed on the graph: {str(error).strip()}", "Check the input's shape.") from error
        return outputs


def demand_gpu(provider: str) -> None:
    """Whether there is a GPU at all, asked of the driver: some libraries crash without one.

    Raises:
        TrimlineError: there is none.
    """
    devices = cuda_devices()
    if not devices:
        what = "no NVIDIA driver" if devices is None else "an NVIDIA driver but no GPU"
        raise TrimlineError(f"The execution provider {provider} needs a GPU, and this machine has {what}.", f"Use {CPU}.")


def options_of(provider: str, graph: Path, served: Sequence[Request] = SERVED) -> list[dict[str, str]]:
    """Options of each provider of a chain; TensorRT's sparse kernels are allowed where the graph's weights are 2:4.

    CUDA computes fp32 in fp32: TF32, its default, has ten bits of mantissa.
    """
    if provider == "cpu":
        return [{}]
    if provider == "cuda":
        return [EXACT]
    sparse = bool(check_two_four(list(weight_patterns(graph)))["complies"])
    return [{"trt_sparsity_enable": str(sparse)} | _shapes(graph, served), EXACT]


def _shapes(graph: Path, served: Sequence[Request]) -> dict[str, str]:
    """One profile for all calls: without it the provider builds its engine again whenever a past is longer than any before."""
    profiles = profiles_for(graph_inputs(graph), served)
    least: dict[str, list[int]] = {}
    best: dict[str, list[int]] = {}
    most: dict[str, list[int]] = {}
    for name in profiles[0].shapes:
        ranges = [profile.shapes[name] for profile in profiles]
        least[name] = [min(sizes) for sizes in zip(*(low for low, _, _ in ranges), strict=True)]
        best[name] = list(ranges[-1][1])  # a step's: most calls are steps
        most[name] = [max(sizes) for sizes in zip(*(high for _, _, high in ranges), strict=True)]
    kinds = {"min": least, "opt": best, "max": most}
    return {
        f"trt_profile_{kind}_shapes": ",".join(f"{name}:{'x'.join(map(str, sizes))}" for name, sizes in shapes.items())
        for kind, shapes in kinds.items()
    }


def open_on(graph: Path, provider: str, threads: int, provider_options: Sequence[Mapping[str, str]]) -> Any:
    """A session on a provider, and only there but for computations on shapes.

    Raises:
        TrimlineError: the provider is not in this build, does not start, or leaves products to the processor.
    """
    import onnxruntime

    chain = CHAINS[provider]
    missing = [name for name in chain if name not in onnxruntime.get_available_providers()]
    if missing:
        raise provider_refusal(missing[0], "this build of ONNX Runtime does not have it")
    if not graph.is_file():
        raise TrimlineError(f"There is no {graph.name} in {graph.parent}.", "Give the folder that the export stage wrote.")
    load_libraries(chain)
    strict = provider != "cpu"
    try:
        session = _session(graph, chain, threads, provider_options, strict)
    except Exception as error:  # as in call
        if FORBIDDEN not in str(error):
            raise TrimlineError(
                f"ONNX Runtime cannot open {graph} on {chain[0]}: {str(error).strip()}", "See `trimline doctor`."
            ) from error
        session = _session(graph, chain, threads, provider_options, strict=False)
        check_places(places(session), chain)
    lost = [name for name in chain if name not in session.get_providers()]
    if lost:
        raise provider_refusal(lost[0], "it did not start (a library or a device is missing)")
    return session


def _session(graph: Path, chain: Sequence[str], threads: int, provider_options: Sequence[Mapping[str, str]], strict: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry(RECORD, "1")
    if strict:
        options.add_session_config_entry(FORBID, "1")
    return onnxruntime.InferenceSession(str(graph), options, providers=list(chain), provider_options=list(map(dict, provider_options)))


def _numpy_type(dtype: torch.dtype) -> Any:
    if dtype is torch.bfloat16:  # numpy has no such type; ONNX names it by its number
        import onnx

        return onnx.TensorProto.BFLOAT16
    return np.dtype(str(dtype).removeprefix("torch.")).type
