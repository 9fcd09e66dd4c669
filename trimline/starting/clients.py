"""Who is to load the result, by the names that ``--for`` takes, and in which form each reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from deploy.recipe import TargetName
from pipeline.common.errors import TrimlineError, shown

Form = Literal["graph", "checkpoint", "gguf"]
FORMS: dict[Form, str] = {"graph": "the ONNX graph", "checkpoint": "the checkpoint", "gguf": "the GGUF file"}


@dataclass(frozen=True)
class Client:
    """Something that loads a result.

    Attributes:
        consumer: its row in the table of ``trimline inspect``.
        form: what it reads.
    """

    consumer: str
    form: Form


CLIENTS: dict[str, Client] = {
    "onnxruntime": Client("ONNX Runtime", "graph"),
    "onnxruntime-genai": Client("onnxruntime-genai", "graph"),
    "triton": Client("ONNX Runtime", "graph"),
    "kserve": Client("onnxruntime-genai", "graph"),
    "vllm": Client("vLLM", "checkpoint"),
    "llama.cpp": Client("llama.cpp", "gguf"),
    "transformers": Client("transformers (stock)", "checkpoint"),
    "hub": Client("transformers (shipped file)", "checkpoint"),
    "sglang": Client("SGLang", "checkpoint"),
    "tensorrt": Client("TensorRT", "graph"),
    "tensorrt-llm": Client("TensorRT-LLM", "checkpoint"),
    "tensorrt-edge-llm": Client("TensorRT Edge-LLM", "checkpoint"),
    "openvino": Client("OpenVINO GenAI", "checkpoint"),
    "optimum": Client("optimum-onnx", "graph"),
}
DEFAULT_CLIENT = "onnxruntime"  # what the benchmark times, too
DEFAULT_WITHOUT_GRAPH = "transformers"
SERVERS: tuple[str, ...] = get_args(TargetName)  # for these a package brings a folder


def clients(names: Iterable[str], default: str = DEFAULT_CLIENT) -> dict[str, Client]:
    """The clients of these names, each once; the default where there are none.

    Raises:
        TrimlineError: there is no client of that name; the nearest is named.
    """
    wanted = dict.fromkeys(name.strip().lower() for name in names) or {default: None}
    for name in wanted:
        if name not in CLIENTS:
            near = get_close_matches(name, CLIENTS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"--for takes {', '.join(CLIENTS)}."
            raise TrimlineError(f"There is no server or runtime {shown(name)} here.", hint)
    return {name: CLIENTS[name] for name in wanted}
