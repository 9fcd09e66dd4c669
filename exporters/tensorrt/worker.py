"""The process that an engine is built or run in: ``python -m exporters.tensorrt.worker``.

It answers as ``pipeline.common.children`` says. Apart, because TensorRT can end the process it runs in, and because it holds
gigabytes. Everything that it and polygraphy log goes to the parent's log, verbose: lines of INFO and VERBOSE are what a proof of sparse kernels reads. TensorRT 10 and 11 and
TensorRT-RTX are used through what they share; polygraphy knows where they differ.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

from pipeline.common.answering import answer_parent
from pipeline.common.errors import TrimlineError

WORD = {"tensorrt": "0", "tensorrt_rtx": "1"}


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parses the graph, builds, writes the engine and, where it can be opened here, what its inspector says.

    Args:
        request: ``builder``, ``onnx``, ``engine``, ``inspector`` and ``timing_cache`` (paths), ``sparse``, ``inspect``, ``level``,
            ``profiles`` (name and shapes), ``capabilities`` (pairs of numbers).

    Returns:
        The version, flags that were set, layers, bytes, seconds; or ``problem``.
    """
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = WORD[request["builder"]]
    warnings.simplefilter("ignore", DeprecationWarning)  # RTX deprecates the timing cache that polygraphy sets
    from polygraphy.backend.trt import NetworkFromOnnxPath
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE
    start = time.perf_counter()
    builder, network, _ = NetworkFromOnnxPath(request["onnx"], strongly_typed=True)()
    parsed = time.perf_counter()
    config = _config(request)(builder, network)
    _clear_tf32(config, request["builder"])
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"problem": "the builder gave no engine"}
    seconds = {"parse": parsed - start, "build": time.perf_counter() - parsed}
    Path(request["engine"]).write_bytes(engine)
    _keep_timings(config, request["timing_cache"])
    return {
        "version": _trt(request["builder"]).__version__,
        "flags": _flags(config, request["builder"]),
        "layers": network.num_layers,
        "bytes": engine.nbytes,
        "inspected": _inspect(engine, request),
        "seconds": seconds,
    }


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Opens an engine, feeds it tokens along every path, and writes the logits.

    Args:
        request: ``folder`` and ``logits`` (paths), ``ids`` (rows of tokens), ``paths`` (name to pieces, each a start and an end).

    Returns:
        The engine's precision.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from exporters.tensorrt.decoder import along
    from exporters.tensorrt.session import EngineDecoder

    engine, ids = EngineDecoder(Path(request["folder"])), np.asarray(request["ids"], np.int64)
    save_file({name: along(engine, ids, pieces) for name, pieces in request["paths"].items()}, request["logits"])
    return {"precision": engine.precision}


def _config(request: dict[str, Any]) -> Any:
    from polygraphy.backend.trt import CreateConfig, Profile

    profiles = []
    for given in request["profiles"]:
        profile = Profile()
        for name, (least, best, most) in given["shapes"].items():
            profile.add(name, tuple(least), tuple(best), tuple(most))
        profiles.append(profile)
    cache = request["timing_cache"]
    shared = {
        "profiles": profiles,
        "sparse_weights": request["sparse"],
        "builder_optimization_level": request["level"],
        "load_timing_cache": cache if cache and Path(cache).is_file() else None,
    }
    if request["builder"] == "tensorrt":
        return CreateConfig(**shared)
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    pairs = [tuple(pair) for pair in request["capabilities"]]
    return CreateConfigRTX(compute_capabilities=pairs or None, **shared)


def _trt(builder: str) -> Any:
    if builder == "tensorrt":
        import tensorrt

        return tensorrt
    import tensorrt_rtx

    return tensorrt_rtx


def _clear_tf32(config: Any, builder: str) -> None:
    # The graph says fp32, and is gated as fp32; who wants less exports fp16.
    config.clear_flag(_trt(builder).BuilderFlag.TF32)


def _flags(config: Any, builder: str) -> list[str]:
    members = _trt(builder).BuilderFlag.__members__
    return sorted(name for name, flag in members.items() if config.get_flag(flag))


def _keep_timings(config: Any, path: str | None) -> None:
    cache = config.get_timing_cache() if path else None
    if cache is not None and path:
        beside = Path(path).with_suffix(".new")
        beside.write_bytes(cache.serialize())
        beside.replace(path)


def _inspect(engine: Any, request: dict[str, Any]) -> bool:
    """Writes the inspector's JSON; only asked for where a driver is, since opening an engine without one ends the process."""
    if not request["inspect"]:
        return False
    trt = _trt(request["builder"])
    from polygraphy.backend.trt import get_trt_logger

    opened = trt.Runtime(get_trt_logger()).deserialize_cuda_engine(engine)
    if opened is None:
        return False
    text = opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    Path(request["inspector"]).write_text(text, encoding="utf-8")
    return True


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Reply to one request; what goes wrong is the reply, in one line."""
    try:
        return run(request) if request["do"] == "run" else build(request)
    except TrimlineError as error:
        return {"problem": error.problem, "remedy": error.remedy}
    except OSError as error:
        return {"problem": str(error), "errno": error.errno, "file": error.filename}
    except Exception as error:  # noqa: BLE001 - polygraphy's and TensorRT's errors share no class; the parent makes a sentence of it
        return {"problem": " ".join(str(error).split()) or type(error).__name__}


def main() -> None:
    """Serves the parent."""
    answer_parent(answer)


if __name__ == "__main__":
    main()
