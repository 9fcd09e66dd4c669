"""What the cells of a type's row do: real stages on a tiny model, each asked for by name, in a child process.

A cell that needs what an earlier one made finds it in the type's folder, so that a new child goes on where one has died.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.types.tiny import tiny_model
from exporters.gguf.recipe import GgufSlice
from exporters.gguf.stage import export_gguf
from exporters.onnx.stage import export
from exporters.recipe import ExportSlice
from pipeline.architecture.obstacles import check_heads, check_stream
from pipeline.architecture.profile import Profile
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.common.answering import answer_parent
from pipeline.common.children import module_command
from pipeline.common.errors import GateError, TrimlineError
from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import prune
from pipeline.rebuild.profiles import check_request
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild

Record = dict[str, Any]
OPTIONS = RunOptions(dtype="float32", threads=1)
QUIET = Events()
PASSES, REFUSED, FAILS, NOTHING = "passes", "refused", "fails", "nothing"
DENSE, PLANS = "dense", "plans"
SPACES = ("ffn", "kv_group", "layer", "residual")
PROFILES = tuple(Profile)
# Of a space, the step whose sizes are alike in all blocks, and the one that gives every block its own.
EVEN: dict[str, Record] = {
    "ffn": {
        "method": "cfsp",
        "budget": {"ffn": {"remove": 0.5}},
        "allocation": "uniform",
        "round_to": 8,
        "compensation": "least_squares",
    },
    "kv_group": {"method": "cfsp_extended", "budget": {"kv_group": {"remove": 0.5}}, "allocation": "uniform"},
    "layer": {"method": "block_influence", "budget": {"layer": {"keep": 3}}},
    "residual": {"method": "residual_energy", "budget": {"residual": {"keep": 48}}, "round_to": 16, "compensation": "least_squares"},
}
UNEVEN: dict[str, Record] = {
    "ffn": {"method": "trimline", "pooled": {"remove": 0.2, "spaces": ["ffn"]}, "round_to": 8},
    "kv_group": {"method": "taylor", "budget": {"kv_group": {"remove": 0.25}}, "allocation": "global"},
}
BOTH: Record = {"method": "flap", "pooled": {"remove": 0.2}, "round_to": 8}


class NoSource(Exception):
    """What the cell starts from did not come about."""


def inspected(_: str, work: Path) -> None:
    """``trimline inspect`` of the dense model, as a user runs it."""
    done = subprocess.run(
        module_command("trimline.cli", "inspect", str(work / DENSE), "--json"), capture_output=True, text=True, check=False
    )
    if done.returncode == TrimlineError.exit_code:
        raise TrimlineError(json.loads(done.stdout.splitlines()[-1])["error"])
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def cut(space: str, profile: Profile, _: str, work: Path) -> None:
    """Pruned along one space and rebuilt in a profile; what a recipe rules out is refused before anything is measured, as in a run."""
    dense = Checkpoint(work / DENSE)
    uneven = profile is Profile.FREE or (profile is Profile.DECILM and space == "ffn")
    step = UNEVEN.get(space, EVEN[space]) if uneven else EVEN[space]
    ffn, kv = (uneven and space == one for one in ("ffn", "kv_group"))
    check_request(profile, dense.geometry.family, ffn, kv, space == "kv_group", dense.config)
    if space == "residual":
        check_stream(dense.geometry.family)
    made(work, step, profile, f"{space}-{profile}")


def made(work: Path, step: Mapping[str, Any], profile: Profile, name: str) -> Path:
    """The checkpoint of a step, pruned once for all profiles; not made again where it is there."""
    plan, out = work / PLANS / str(step["method"]), work / name
    if out.is_dir():
        return out
    tokens = torch.randint(4, 100, (12, 32), generator=torch.Generator().manual_seed(1)).tolist()
    recipe = PruneSlice.model_validate({"calibration": {"token_ids": tokens}, "steps": [step]})
    if not plan.is_dir():
        into(plan, lambda folder: prune(work / DENSE, work, recipe, OPTIONS, folder, QUIET))
    return into(out, lambda folder: rebuild(work / DENSE, plan, RebuildSlice(profile=profile), OPTIONS, folder, QUIET))


def into(folder: Path, write: Callable[[Path], None]) -> Path:
    """A folder that is there only when it is whole."""
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write(beside)
    return beside.rename(folder)


def all_alike(work: Path) -> Path:
    """A smaller model whose blocks are alike."""
    return source(work, EVEN["ffn"], Profile.UNIFORM, f"ffn-{Profile.UNIFORM}")


def all_different(work: Path) -> Path:
    """A smaller model whose blocks differ in FFN and, where heads may go, in KV groups."""
    try:
        check_heads(Checkpoint(work / DENSE).geometry.family)
    except TrimlineError:
        return source(work, UNEVEN["ffn"], Profile.FREE, f"ffn-{Profile.FREE}")
    return source(work, BOTH, Profile.FREE, "the smaller model")


def source(work: Path, step: Mapping[str, Any], profile: Profile, name: str) -> Path:
    """What is exported; raises NoSource where it cannot be made."""
    try:
        return made(work, step, profile, name)
    except TrimlineError as error:
        raise NoSource(f"{name} was not made: {error.problem}") from None


def graph(lowering: str, _: str, work: Path) -> None:
    """ONNX of blocks that differ."""
    recipe = ExportSlice.model_validate({"lowering": lowering})
    into(work / f"onnx-{lowering}", partial(export, all_different(work), recipe, OPTIONS, events=QUIET))  # type: ignore[call-arg]


def gguf(source: Callable[[Path], Path], name: str, work: Path) -> None:
    """GGUF of blocks that are alike, or differ; read again, and run where llama.cpp is installed."""
    into(work / name.replace("/", "-"), lambda out: export_gguf(source(work), GgufSlice(precision="fp32"), OPTIONS, out, QUIET))


CELLS: dict[str, Callable[[str, Path], None]] = {
    "inspect": inspected,
    **{f"{space}/{profile}": partial(cut, space, profile) for space in SPACES for profile in PROFILES},
    "onnx/portable": partial(graph, "portable"),
    "onnx/fused": partial(graph, "fused"),
    "gguf/alike": partial(gguf, all_alike),
    "gguf/different": partial(gguf, all_different),
}


def tried(request: Record) -> Record:
    """What came of a cell: its outcome and, where it is none that passes, why."""
    name, work = str(request["cell"]), Path(request["work"])
    try:
        if not (work / DENSE).is_dir():
            into(work / DENSE, lambda folder: void(tiny_model(str(request["type"]), folder)))
        CELLS[name](name, work)
    except NoSource as error:
        return {"outcome": NOTHING, "why": said(str(error), work)}
    except GateError as error:
        return {"outcome": FAILS, "why": said(error.problem, work)}
    except TrimlineError as error:
        return {"outcome": REFUSED, "why": said(error.problem, work)}
    except Exception as error:  # whatever a library raises is a cell, not the end of the table
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return {"outcome": FAILS, "why": said(f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.name})", work)}
    return {"outcome": PASSES}


def said(text: str, work: Path) -> str:
    """A message on one line, without folders of the machine."""
    return " ".join(text.replace(f"{work}/", "").split())[:400]


def void(_: object) -> None:
    """For what is done for its files."""


if __name__ == "__main__":
    answer_parent(tried)
