"""What is computed, and its digests: recipes on tiny models, and the quickstart. Run as a process of its own, on one thread.

Only what users call stands here, so that it stays as it is while the code behind it moves.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import trimline
from tests.sameness.digests import folder_digests
from tests.tiny import tiny_model

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
# Timing cannot be left out of a run, but may be short: its figures are in no digest. Fewer than 25 rounds are on no model card.
TIMED_BRIEFLY = {"workloads": [{"prompt": 2, "output": 2}], "rounds": 1, "warm_up": 1, "minimum_seconds": 0, "most_seconds": 1}


def tiny_cases() -> dict[str, dict[str, Any]]:
    """Name to what cases.yaml says."""
    cases: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "cases.yaml").read_text(encoding="utf-8"))
    return cases


def tiny(case: Mapping[str, Any], folder: Path) -> Iterator[dict[str, str]]:
    """Digests of one case; ``folder`` is new, and the texts lie in the folder that the process is in."""
    options = trimline.RunOptions(**{"dtype": "float32", "threads": 1} | case.get("options", {}))
    model = tiny_model(folder=folder / "dense", **case["model"])
    recipe = {
        "model": str(model),
        "text": {"calibration": "calibration.txt", "evaluation": "evaluation.txt"},
        "prune": {"calibration": {"windows": 16, "window": 32}, "steps": case["steps"]},
        "rebuild": {"profile": case["profile"]},
        "evaluate": {"windows": 4, "window": 32},
        **case.get("rest", {}),
    }
    yield folder_digests(model, "dense")
    if case.get("run"):
        yield from whole_run(recipe, folder / "run", options)
        return
    trimline.prune(recipe, folder / "plan", options=options)
    yield folder_digests(folder / "plan", "plan")
    trimline.rebuild(model, folder / "plan", folder / "rebuilt", profile=case["profile"], options=options)
    yield folder_digests(folder / "rebuilt", "rebuilt")
    yield from exports("onnx", case.get("onnx", ()), folder, trimline.export, trimline.ExportSlice, options)
    yield from exports("gguf", case.get("gguf", ()), folder, trimline.export_gguf, trimline.GgufSlice, options)


def quickstart(folder: Path) -> Iterator[dict[str, str]]:
    """Digests of what the quickstart's recipe computes, and of its result as GGUF."""
    options = trimline.RunOptions(threads=1)
    yield from whole_run(yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8")), folder / "run", options)
    trimline.export_gguf(folder / "run" / "package" / "model", folder / "gguf", options=options)
    yield folder_digests(folder / "gguf", "gguf")


def whole_run(recipe: Mapping[str, Any], output: Path, options: trimline.RunOptions) -> Iterator[dict[str, str]]:
    """Digests of every stage of a run."""
    result = trimline.run({**recipe, "benchmark": TIMED_BRIEFLY}, output, options=options, command="trimline run")
    for stage, artefact in result.artefacts.items():
        yield folder_digests(artefact.folder, stage)


def exports(
    kind: str,
    forms: Sequence[Mapping[str, Any]],
    folder: Path,
    export: Callable[..., Path],
    recipe: Callable[..., Any],
    options: trimline.RunOptions,
) -> Iterator[dict[str, str]]:
    """Digests of the rebuilt checkpoint in other forms; each is what the exporter's slice of a recipe says."""
    for form in forms:
        name = " ".join([kind, *(value for value in form.values() if isinstance(value, str))])
        yield folder_digests(export(folder / "rebuilt", folder / name, recipe=recipe(**form), options=options), name)


def computed(name: str, work: Iterator[dict[str, str]]) -> dict[str, str]:
    """All digests of one piece of work, by ``name/…``; says how long it took."""
    started = time.monotonic()
    found = {f"{name}/{file}": digest for digests in work for file, digest in digests.items()}
    print(f"{name}: {len(found)} files, {time.monotonic() - started:.1f} s", flush=True)
    return found


def prose(seed: int, lines: int) -> str:
    """Lines of invented words; two seeds share no line."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 9))) for _ in range(300)]
    return "".join(" ".join(draw.choices(words, k=14)) + "\n" for _ in range(lines))


def main(part: str, answer: str) -> None:
    """Writes the digests of a part into ``answer``; works in the folder that the process was started in."""
    if part == "quickstart":
        found = computed("quickstart", quickstart(Path("quickstart")))
    else:
        Path("calibration.txt").write_text(prose(1, 40), encoding="utf-8")
        Path("evaluation.txt").write_text(prose(2, 30), encoding="utf-8")
        shutil.copytree(RECIPES / "tasks", "tasks")
        found = {}
        for name, case in tiny_cases().items():
            if case.get("part", "tiny") == part:
                found |= computed(name, tiny(case, Path(name)))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
