"""Which execution providers of ONNX Runtime really run: it lists some that cannot, and falls back without a word."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto, helper

from trimline.doctor.finding import Finding

PROCESSOR = "CPUExecutionProvider"
REMOTE = "AzureExecutionProvider"  # calls a server; nothing to try
SILENT = 4  # ONNX Runtime's severity "fatal"


def examine_providers(driver: bool) -> Iterator[Finding]:
    """One finding per provider that ONNX Runtime lists.

    Args:
        driver: a GPU driver is there; without one, GPU providers are not even tried, since some libraries crash.
    """
    try:
        import onnxruntime
    except ImportError as error:
        yield Finding("Providers", f"onnxruntime does not import ({error})", "warn", "Install it again: pip install --force-reinstall.")
        return
    for name in onnxruntime.get_available_providers():
        if name == REMOTE:
            continue
        if name != PROCESSOR and not driver:
            yield Finding(name, "listed, not usable", "missing", "It needs a GPU driver.")
            continue
        problem = try_provider(name)
        yield Finding(name, "runs") if problem is None else Finding(name, "listed, not usable", "warn", problem)


def try_provider(name: str) -> str | None:
    """Runs a small product on one provider, without fallback; None where it worked, else what went wrong."""
    import numpy as np
    import onnxruntime

    from exporters.onnx.runtime import load_libraries

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    if name != PROCESSOR:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        load_libraries([name])
        session = onnxruntime.InferenceSession(_product(), options, providers=[name])
        result = session.run(None, {"a": np.eye(2, dtype=np.float32), "b": np.full((2, 2), 3, np.float32)})[0]
    except Exception as error:  # noqa: BLE001 - the runtime's error classes are its own; any of them is the finding
        return str(error).splitlines()[0]
    if session.get_providers()[0] != name:
        return f"it fell back to {session.get_providers()[0]}"
    return None if (result == 3).all() else "it computes a wrong product"


def _product() -> bytes:
    shape = [2, 2]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"}
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [values["a"], values["b"]], [values["c"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
