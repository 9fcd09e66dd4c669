"""Speeds at the widths of a large model where none can be had: ``python -m benchmarks.studies.gpu.wide``.

Blocks of random weights at Llama-2-7B's widths are pruned (a quarter of the FFN channels, and 2:4 on top), rebuilt and gated as any
checkpoint, and timed in torch, where the 2:4 ones are semi-structured, and in ONNX Runtime. What was pruned away says nothing here, so
no perplexity stands beside the speeds: they depend on shapes and zeros alone. All models of a runtime are in one process: on a GPU
opening them takes far longer than timing them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import typer

from benchmarks.formulas.roofline import Ceilings
from benchmarks.machine.ceilings import measure_gpu_ceilings
from benchmarks.machine.environment import environment
from benchmarks.recipe import BenchmarkSlice, Workload
from benchmarks.results.from_samples import comparison
from benchmarks.runtimes.names import Runtime
from benchmarks.runtimes.opening import demand
from benchmarks.studies.memory.random_model import LLAMA_2_7B, RandomTensors
from benchmarks.studies.pages import markdown_table
from benchmarks.timing.subject import Subject
from benchmarks.timing.timing import CONTROL, DENSE, Sample, time_workloads
from benchmarks.timing.worker import Worker
from exporters.folder import CONFIG, EXPORT
from exporters.onnx.files import save_graph
from exporters.onnx.lowering.fused import lower_fused
from exporters.onnx.lowering.last_position import keep_last_position
from pipeline.architecture.profile import Profile
from pipeline.artefacts.artefact import whole_folder
from pipeline.checkpoints.checkpoint import Checkpoint, write_checkpoint
from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.common.files import write_json
from pipeline.common.options import RunOptions
from pipeline.live.paging import open_model
from pipeline.prune.model.shrinking import ShrinkingModel
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.stage import make_plan
from pipeline.rebuild.recipe import RebuildSlice
from pipeline.rebuild.stage import rebuild

QUIET = Events()
CUT = {"method": "cfsp", "budget": {"ffn": {"remove": 0.25}}, "round_to": 128}
ZERO = {"method": "magnitude", "budget": {"weight": {"remove": 0.5}}, "pattern": "2:4"}
STEPS = {"pruned": [CUT], "pruned-2-4": [CUT, ZERO]}
WORKLOADS = ("2048/1", "128/33", "128/33x8")
Timeable = Literal["torch", "torch_2_4", "torch_compile", "onnxruntime_cuda"]
RUNTIMES: tuple[Timeable, ...] = ("torch_2_4", "onnxruntime_cuda")
CALIBRATION = (8, 512)
PRECISION: Literal["fp16"] = "fp16"


class OnGpu(RandomTensors):
    """The same shapes, drawn on the GPU in seconds."""

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return (torch.randn(shape, device="cuda") * shape[1] ** -0.5).to(torch.bfloat16).cpu()


class Here:
    """A model in this process, as ``benchmarks.timing.timing`` takes it."""

    def __init__(self, folder: Path, runtime: Runtime, options: RunOptions, vocab: int) -> None:
        self._worker, self._vocab = Worker(), vocab
        self._asked: dict[str, Any] = {"folder": str(folder), "threads": options.threads, "runtime": runtime, "device": options.device}

    def open(self) -> None:
        """Lets go of it and loads it again."""
        self._worker.load(**self._asked)

    def run(self, workload: Workload, seed: int) -> Sample:
        """One request of random tokens."""
        return Sample(**self._worker.run(workload.prompt, workload.output, workload.batch, self._vocab, seed))


def checkpoints(blocks: int, work: Path, options: RunOptions, config: Mapping[str, Any] = LLAMA_2_7B) -> dict[str, Path]:
    """By name, the dense checkpoint and what is rebuilt from it."""
    folders = {DENSE: work / DENSE} | {name: work / name for name in STEPS}
    with whole_folder(folders[DENSE]) as out:
        whole = dict(config) | {"num_hidden_layers": blocks}
        write_checkpoint(out, whole, (OnGpu if options.device == "cuda" else RandomTensors)(whole))
    tokens = torch.randint(0, config["vocab_size"], CALIBRATION, generator=torch.Generator().manual_seed(0))
    for name, steps in STEPS.items():
        model, paging = open_model(folders[DENSE], options, options.resolved_dtype())
        wanted = PruneSlice.model_validate({"steps": steps})
        plan = make_plan(ShrinkingModel(model, Checkpoint(folders[DENSE]), paging), tokens, wanted, QUIET)
        del model, paging  # the gate of the rebuild opens two
        with whole_folder(work / f"plan-{name}") as out:
            plan.write(out)
        with whole_folder(folders[name]) as out:
            rebuild(folders[DENSE], work / f"plan-{name}", RebuildSlice(profile=Profile.DECILM), options, out, QUIET)
    return folders


def graph(checkpoint: Path, out: Path) -> Path:
    """The fused graph; without a tokenizer there is no text to gate it by."""
    with whole_folder(out) as folder:
        model = lower_fused(Checkpoint(checkpoint), PRECISION, QUIET)
        keep_last_position(model)
        save_graph(model, folder, "fused")
        write_json(folder / CONFIG, Checkpoint(checkpoint).config)
        write_json(folder / EXPORT, {"lowering": "fused", "precision": PRECISION, "logits": "last"})
    return out


def timed(
    runtime: Runtime, folders: Mapping[str, Path], recipe: BenchmarkSlice, limit: Ceilings, options: RunOptions
) -> list[dict[str, Any]]:
    """Dense against each of the others, per workload and phase."""
    subjects = {name: Subject.read(name, folder, runtime, options.device) for name, folder in folders.items()}
    vocab = subjects[DENSE].geometry.vocab
    models = {name: Here(folder, runtime, options, vocab) for name, folder in folders.items()}
    times = time_workloads(models | {CONTROL: Here(folders[DENSE], runtime, options, vocab)}, recipe)
    return [
        {"runtime": runtime, "seconds": times[workload.name][DENSE].by_phase()[phase]}
        | comparison(subjects[DENSE], subjects[name], workload, phase, times[workload.name], limit, recipe.rounds_per_opening).as_record()
        for workload in recipe.workloads
        for phase in times[workload.name][DENSE].by_phase()
        for name in folders
        if name != DENSE
    ]


def table(found: list[dict[str, Any]]) -> str:
    """A row per runtime, workload, metric and model."""
    columns = ["runtime", "workload", "metric", "model", "dense ms", "speed-up", "dense again", "allowed by shapes", "outcome"]
    rows = []
    for one in found:
        up, control = one["speed_up"], one["control"]
        middle = sorted(one["seconds"])[len(one["seconds"]) // 2] * 1e3
        rows.append(
            [
                *(str(one[key]) for key in ("runtime", "workload", "metric", "model")),
                f"{middle:.2f}",
                f"{up['value']:.3f} [{up['low']:.3f}, {up['high']:.3f}]",
                f"{control['value']:.3f}",
                f"{one['allowed']:.2f}",
                one["verdict"],
            ]
        )
    return markdown_table(columns, rows)


def main(
    work: Annotated[Path, typer.Option(help="Folder for models and raw.json; 4 GB per billion parameters and model.")],
    blocks: Annotated[int, typer.Option(min=1, help="Of the model, which has 32.")] = 8,
    runtime: Annotated[list[str] | None, typer.Option(help=f"Instead of {', '.join(RUNTIMES)}.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help=f"Instead of {', '.join(WORKLOADS)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved; five to an opening.")] = 25,
    most_seconds: Annotated[float, typer.Option(help="Of timing, per runtime.")] = 120.0,
) -> None:
    """Print the speed-ups of pruned and of pruned and 2:4 over dense."""
    options = RunOptions(device="cuda", dtype="bfloat16")
    wanted = [name for name in get_args(Timeable) if name in (runtime or RUNTIMES)]
    if unknown := set(runtime or ()) - set(wanted):
        raise SystemExit(f"error: {min(unknown)} is not timed here; {', '.join(get_args(Timeable))} are.")
    try:
        options.apply()
        for name in wanted:
            demand(name)
    except TrimlineError as error:
        raise SystemExit(f"error: {error}") from None
    recipe = BenchmarkSlice.model_validate(
        {"workloads": workload or WORKLOADS, "rounds": rounds, "most_seconds": most_seconds, "minimum_seconds": 0}
    )
    rates = measure_gpu_ceilings(PRECISION)
    limit = Ceilings(max(rates["bandwidth"]), max(rates["rate"]))
    models = checkpoints(blocks, work, options)
    found: list[dict[str, Any]] = []
    for name in wanted:
        of_torch = name.startswith("torch")
        folders = models if of_torch else {key: graph(models[key], work / f"{key}-onnx") for key in (DENSE, "pruned")}
        found += timed(name, folders, recipe, limit, options)
        (work / "raw.json").write_text(json.dumps({"found": found, "ceilings": rates, "environment": environment(1)}), encoding="utf-8")
        typer.echo(table(found))
    typer.echo(
        f"{blocks} blocks; reads {limit.bandwidth / 1e12:.2f} TB/s, multiplies {limit.rate / 1e12:.0f} TFLOP/s; {torch.cuda.get_device_name()}."
    )


if __name__ == "__main__":
    typer.run(main)
