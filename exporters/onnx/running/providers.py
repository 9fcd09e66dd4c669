"""Opening a graph on one of ONNX Runtime's providers, so that nothing falls back to the processor unnoticed.

ONNX Runtime lists providers that cannot start, and computes on the processor instead without a word. Here the provider
must be in the opened session. A GPU's provider itself keeps computations on shapes on the processor: the session is asked
where each node runs, and anything but such a computation is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporters.onnx.running.device import CHAINS, Provider
from exporters.onnx.running.placement import RECORD, check_places, places
from exporters.onnx.runtime import CPU, load_libraries, provider_refusal
from pipeline.common.driver import cuda_devices
from pipeline.common.errors import TrimlineError

WEIGHTS_BESIDE = "session.model_external_initializers_file_folder_path"  # where a graph that comes from memory has its weights
UNPACKED, FOLDING = "session.disable_prepacking", "ConstantFolding"  # each would hold a copy of what lies in the file
FEW_REWRITES = "ORT_ENABLE_EXTENDED"  # so do the optimizations beyond it, of fp16 weights, in fp32: a processor has few kernels for those
EXACT = {"use_tf32": "0"}
ERRORS = 3  # of ONNX Runtime's levels of logging

Sizes = tuple[int, int, int]  # of a request: prompt, output, batch
SERVED: tuple[Sizes, ...] = ((512, 513, 1), (512, 1, 8))  # what the TensorRT provider's engine has room for, unless it is told


def open_session(
    graph: Path,
    provider: Provider = "cpu",
    threads: int = 0,
    *,
    every_position: bool = False,
    mapped: bool = False,
    served: Sequence[Sizes] = SERVED,
) -> Any:
    """A session on a provider, and only there but for computations on shapes; arguments as ``OnnxDecoder`` has them.

    Raises:
        TrimlineError: there is no graph or no GPU, the provider is not in this build, does not start, or leaves products to the processor.
    """
    import onnxruntime

    chain = CHAINS[provider]
    if provider != "cpu":
        demand_gpu(chain[0])
    missing = [name for name in chain if name not in onnxruntime.get_available_providers()]
    if missing:
        raise provider_refusal(missing[0], "this build of ONNX Runtime does not have it")
    if not graph.is_file():
        raise TrimlineError(f"There is no {graph.name} in {graph.parent}.", "Give the folder that the export stage wrote.")
    load_libraries(chain)
    frugal = mapped or (every_position and provider == "cpu")
    options = _session_options(threads, mapped=mapped, frugal=frugal, recorded=provider != "cpu")
    of_providers = options_of(provider, graph, served)
    kept_out = {"disabled_optimizers": [FOLDING]} if mapped else {}
    try:
        model = (_every_position(graph, options) if every_position else None) or str(graph)
        session = onnxruntime.InferenceSession(model, options, providers=list(chain), provider_options=of_providers, **kept_out)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise TrimlineError(
            f"ONNX Runtime cannot open {graph} on {chain[0]}: {str(error).strip()}",
            "Export it again, or use another provider; `trimline doctor` shows which run.",
        ) from error
    lost = [name for name in chain if name not in session.get_providers()]
    if lost:
        raise provider_refusal(lost[0], "it did not start (a library or a device is missing)")
    if provider != "cpu":
        check_places(places(session), chain)
    return session


def _session_options(threads: int, *, mapped: bool, frugal: bool, recorded: bool) -> Any:
    """``frugal``: without copies of weights in another type, which a text that is read once does not pay for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if recorded:
        options.add_session_config_entry(RECORD, "1")
        options.log_severity_level = ERRORS  # it warns of computations on the processor, every one of which is checked below
    if mapped:
        options.add_session_config_entry(UNPACKED, "1")
        options.enable_cpu_mem_arena = False  # it would keep what a run took for the next one
    if frugal:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.__members__[FEW_REWRITES]
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # a weight is cast when its turn comes, not all at first
    return options


def _every_position(graph: Path, options: Any) -> bytes | None:
    """The graph for the session to open from memory, which is told where its weights are; None where the file's own will do."""
    from exporters.onnx.lowering.last_position import all_positions, weights_folder  # brings onnx, which a measured process does without

    model = all_positions(graph)
    if model is not None:
        options.add_session_config_entry(WEIGHTS_BESIDE, str(weights_folder(graph)))
    return model


def demand_gpu(provider: str) -> None:
    """Whether there is a GPU at all, asked of the driver: some libraries crash without one.

    Raises:
        TrimlineError: there is none.
    """
    devices = cuda_devices()
    if not devices:
        what = "no NVIDIA driver" if devices is None else "an NVIDIA driver but no GPU"
        raise TrimlineError(f"The execution provider {provider} needs a GPU, and this machine has {what}.", f"Use {CPU}.")


def options_of(provider: Provider, graph: Path, served: Sequence[Sizes] = SERVED) -> list[dict[str, str]]:
    """Options of each provider of a chain; TensorRT's sparse kernels are allowed where the graph's weights are 2:4.

    CUDA computes fp32 in fp32: TF32, its default, has ten bits of mantissa.
    """
    if provider == "cpu":
        return [{}]
    if provider == "cuda":
        return [EXACT]
    from exporters.onnx.sparsity import check_two_four, weight_patterns  # brings torch and onnx, as _every_position does

    sparse = bool(check_two_four(list(weight_patterns(graph)))["complies"])
    return [{"trt_sparsity_enable": str(sparse)} | _shapes(graph, served), EXACT]


def _shapes(graph: Path, served: Sequence[Sizes]) -> dict[str, str]:
    """One profile for all calls: without it the provider builds its engine again whenever a past is longer than any before."""
    from exporters.onnx.running.shapes import EngineRequest, graph_inputs, profiles_for

    profiles = profiles_for(graph_inputs(graph), [EngineRequest(*sizes) for sizes in served])
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
