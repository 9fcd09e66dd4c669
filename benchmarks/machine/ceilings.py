"""The two measured numbers under the roofline: how fast this machine reads memory, and how fast it multiplies.

Both take the better of what is at hand, because a ceiling that the benchmarked runtime can pass is none. Reading is
timed as torch's sum over an array that no cache holds: ONNX Runtime has no operator that only reads (its one-row
matrix product, which decoding is made of, gets less out of memory, and would flatter itself). Multiplying is timed as
one large fp32 ``MatMul`` in ONNX Runtime. As in STREAM, the best of the repeats counts: a ceiling is what the machine
can do, and what else ran at the time only takes away from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.runtimes.names import Multiplied
from pipeline.common.errors import TrimlineError

READ_BYTES = 512 * 2**20
SIDE = 2048
ROWS = 1024
REPEATS = 15
KINDS: dict[Multiplied, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def measure_ceilings(threads: int, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Bytes/s and FLOP/s of every repeat, with ``threads`` threads."""
    return {"bandwidth": read_rates(threads, repeats), "rate": multiply_rates(threads, repeats)}


def read_rates(threads: int, repeats: int, size: int = READ_BYTES) -> list[float]:
    """Bytes/s of summing ``size`` bytes of fp32."""
    torch.set_num_threads(threads)
    array = torch.ones(size // 4)
    return [size / seconds for seconds in _time(lambda: array.sum(), repeats)]


def multiply_rates(threads: int, repeats: int, rows: int = ROWS, side: int = SIDE) -> list[float]:
    """FLOP/s of (rows, side) @ (side, side), fp32, in ONNX Runtime; the result is written into memory that is there."""
    session = onnxruntime.InferenceSession(_product(side), _session_options(threads), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.ones((rows, side), np.float32))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((rows, side), np.float32)))
    work = 2 * rows * side * side
    return [work / seconds for seconds in _time(lambda: session.run_with_iobinding(binding), repeats)]


def measure_gpu_ceilings(
    precision: Multiplied = "fp16", repeats: int = REPEATS, size: int = 8 * READ_BYTES, side: int = 4 * SIDE
) -> dict[str, list[float]]:
    """Bytes/s of reading the GPU's memory and FLOP/s of a large product there, of every repeat; both in torch.

    A product in fp32 is one of fp32: torch leaves TF32 off, as engines and sessions here do.

    Raises:
        TrimlineError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise TrimlineError("This torch sees no CUDA device.", "Install a CUDA build of torch.")
    array = torch.ones(size // 4, device="cuda")
    # Random: a GPU whose power is limited multiplies ones faster than anything that it will meet.
    one, other = (torch.randn((side, side), device="cuda").to(KINDS[precision]) for _ in range(2))

    def finished(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            call()
            torch.cuda.synchronize()

        return run

    return {
        "bandwidth": [size / seconds for seconds in _time(finished(lambda: array.sum()), repeats)],
        "rate": [2 * side**3 / seconds for seconds in _time(finished(lambda: one @ other), repeats)],
    }


def _time(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of every repeat after two that warm up."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def _product(side: int) -> bytes:
    """A model of one ``MatMul``, whose constant side the runtime may pack as it packs a model's weights."""
    weights = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", side])],
        [numpy_helper.from_array(weights, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
