"""The command line: one verb per stage. What each does is in ``trimline.api``; this module only reads and prints."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trimline.cli_bench import Batches, MostSeconds, RuntimeName, Targets, Workloads
from trimline.cli_build import build
from trimline.cli_compare import compare
from trimline.cli_serve import serve
from trimline.cli_sweep import sweep
from trimline.cli_tasks import Batch, Limit, Shots, TaskCode, Tasks, evaluate_tasks, only_with_tasks
from trimline.cli_verify import verify
from trimline.session import Session, ended_by_itself, session

if TYPE_CHECKING:
    from pipeline.options import RunOptions
    from trimline.graph import RunResult

app = typer.Typer(
    name="trimline",
    help="Makes a decoder-only language model smaller, proves that it computes the right thing, and measures that it is faster.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Device(StrEnum):
    """Where to compute."""

    CPU = "cpu"
    CUDA = "cuda"


class DTypeName(StrEnum):
    """In what to measure."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


RecipeFile = Annotated[Path, typer.Argument(help="A YAML recipe, such as recipes/quickstart.yaml.")]
Model = Annotated[str, typer.Argument(help="'default', a Hugging Face folder, a .gguf file or a hub id.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for everything that is written: new or empty, or that of the run to go on with.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
DTypeOption = Annotated[
    DTypeName, typer.Option(help="Of the passes that measure activations or train; auto takes bf16 where the processor has it.")
]
Threads = Annotated[int | None, typer.Option(min=1, max=4096, help="For torch and ONNX Runtime; default: every core this process may use.")]
Memory = Annotated[
    str | None,
    typer.Option(help="What may be used, such as 4GiB; a model that needs more is in memory one block at a time. Default: all there is."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that a foreign checkpoint carries.")]
Json = Annotated[bool, typer.Option("--json", help="End stdout with one line of JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def run(
    recipe: RecipeFile,
    output: Output = Path("runs/run"),
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe from model to package."""
    with session(as_json, debug) as here:
        from trimline import api
        from trimline.reporting import render_terminal

        command = shlex.join(["trimline", *sys.argv[1:]])
        result = api.run(recipe, output, options=_options(device, dtype, threads, trust, memory), events=here.events, command=command)
        render_terminal(result.report, here.out, result.page)
        here.out.print(f"Package: {result.package}", soft_wrap=True, highlight=False)
        here.answer(_run_answer(result))


@app.command()
def prune(
    recipe: RecipeFile,
    output: Output,
    model: Annotated[str | None, typer.Option(help="Instead of the recipe's model.")] = None,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Calibrate and decide what goes; writes a plan."""
    with session(as_json, debug) as here:
        from trimline import api

        plan = api.prune(recipe, output, model=model, options=_options(device, dtype, threads, trust, memory), events=here.events)
        selection = plan.selection
        ffn = [len(selection.ffn[block]) for block in selection.blocks]
        kv_groups = [len(selection.kv_groups[block]) for block in selection.blocks]
        here.out.print(f"Plan in {output}: {len(ffn)} blocks, {sum(ffn)} FFN channels and {sum(kv_groups)} KV groups stay.", soft_wrap=True)
        here.answer({"plan": str(output), "blocks": selection.blocks, "ffn": ffn, "kv_groups": kv_groups})


@app.command()
def rebuild(
    model: Model,
    plan: Annotated[Path, typer.Argument(help="A plan folder, as `trimline prune` writes it.")],
    output: Output,
    profile: Annotated[Literal["uniform", "decilm", "free"], typer.Option(help="What shapes the consumer accepts.")] = "uniform",
    device: DeviceOption = Device.CPU,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a plan and prove the result."""
    with session(as_json, debug) as here:
        from trimline import api

        options = _options(device, DTypeName.AUTO, threads, trust, memory)
        folder = api.rebuild(model, plan, output, profile=profile, options=options, events=here.events)
        _show_folder(here, folder)


@app.command()
def recover(
    recipe: RecipeFile,
    pruned: Annotated[Path, typer.Argument(help="A folder that `trimline rebuild` wrote, or any checkpoint folder.")],
    output: Output,
    model: Annotated[str | None, typer.Option(help="The dense model, instead of the recipe's; for distillation.")] = None,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    memory: Annotated[str | None, typer.Option(help="What may be used, such as 16GiB; training has the model whole.")] = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train what was rebuilt, and prove the result."""
    with session(as_json, debug) as here:
        from pipeline.events import Events
        from pipeline.recover.processes import first_process
        from trimline import api

        options = _options(device, dtype, threads, trust, memory)
        events = here.events if first_process() else Events()
        folder = api.recover(recipe, pruned, output, model=model, options=options, events=events)
        if first_process():
            _show_folder(here, folder)


@app.command()
def evaluate(
    model: Model,
    text: Annotated[str, typer.Option(help="'default', a .txt/.jsonl/.parquet file, or a hub data set.")] = "default",
    windows: Annotated[int, typer.Option(min=1, help="How many windows.")] = 16,
    window: Annotated[int, typer.Option(min=2, help="Tokens per window; they do not overlap.")] = 1024,
    task: Tasks = None,
    shots: Shots = None,
    limit: Limit = None,
    batch: Batch = 1,
    allow_task_code: TaskCode = False,
    device: DeviceOption = Device.CPU,
    threads: Threads = None,
    memory: Memory = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure perplexity, or what lm-eval measures, of a model or an exported folder."""
    with session(as_json, debug) as here:
        from trimline import api

        options = _options(device, DTypeName.AUTO, threads, trust, memory)
        if task:
            return evaluate_tasks(here, model, task, options, shots=shots, limit=limit, batch=batch, allow_task_code=allow_task_code)
        only_with_tasks(shots is not None or limit is not None or batch != 1 or allow_task_code)
        found = api.evaluate(model, text=text, windows=windows, window=window, options=options, events=here.events)
        error = "" if found.standard_error is None else f" ± {found.standard_error:.2f}"
        here.out.print(f"Perplexity {found.value:.2f}{error} ({windows} windows of {window} tokens).", highlight=False)
        return here.answer(asdict(found))


@app.command()
def export(
    model: Model,
    output: Output,
    form: Annotated[Literal["onnx", "gguf"], typer.Option("--format", help="gguf: one file for llama.cpp.")] = "onnx",
    lowering: Annotated[
        Literal["auto", "fused", "portable"], typer.Option(help="fused: fastest in ONNX Runtime; portable: standard operators.")
    ] = "auto",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "int4"] | None, typer.Option(help="Of the weights; default: fp32, and fp16 in GGUF.")
    ] = None,
    perplexity_bar: Annotated[
        float | None, typer.Option(min=1.0, help="What the result's perplexity may be over the model's; default: by precision.")
    ] = None,
    logits: Annotated[Literal["all", "last"], typer.Option(help="Of each row's last token, or of all positions.")] = "last",
    quantise: Annotated[str | None, typer.Option(metavar="KIND", help="Let llama.cpp quantise the GGUF, to q4_k_m, say.")] = None,
    device: DeviceOption = Device.CPU,
    memory: Memory = None,
    threads: Threads = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write ONNX or GGUF and prove it."""
    with session(as_json, debug) as here:
        if form == "gguf":
            from trimline.cli_gguf import export_gguf, only_for_onnx

            only_for_onnx(lowering != "auto", logits != "last")
            wanted = {"precision": precision, "quantise": quantise, "perplexity_bar": perplexity_bar}
            return export_gguf(here, model, output, wanted, _options(device, DTypeName.AUTO, threads, trust, memory))
        from trimline import api
        from trimline.recipe import checked_slice

        _only_for_gguf(quantise)
        chosen = {"lowering": lowering, "precision": precision or "fp32", "logits": logits, "perplexity_bar": perplexity_bar}
        recipe = checked_slice("export", chosen)
        options = _options(device, DTypeName.AUTO, threads, trust, memory)
        return _show_folder(here, api.export(model, output, recipe=recipe, options=options, events=here.events))


app.command()(build)


@app.command()
def bench(
    dense: Annotated[
        Path, typer.Argument(help="Folder that the others are compared with: ONNX, or what the recipe's benchmark.runtime opens.")
    ],
    candidates: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of the same kind.")],
    output: Output,
    perplexity: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Once for dense, once per folder by its name; no speed without one.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe; its benchmark part says what is timed.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds; default 25, and fewer resolve nothing.")] = None,
    workload: Workloads = None,
    batch: Batches = None,
    runtime: RuntimeName = None,
    most_seconds: MostSeconds = None,
    targets: Targets = False,
    device: DeviceOption = Device.CPU,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time exported folders, engines or checkpoints side by side."""
    with session(as_json, debug) as here:
        from trimline import api
        from trimline.arguments import benchmark_slice, by_name, parse_accuracy

        named = by_name(candidates)
        accuracy = parse_accuracy(perplexity or [], ["dense", *named])
        options = _options(device, DTypeName.AUTO, threads, False)
        timing = benchmark_slice(recipe, rounds, workload or (), batch or (), runtime, most_seconds)
        results = api.bench(dense, named, output, accuracy=accuracy, recipe=timing, options=options, events=here.events)
        here.out.print((output / "results.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
        here.answer({"folder": str(output), "comparisons": results["comparisons"]})


app.command()(sweep)
app.command()(compare)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of `trimline run`, or a folder with report.json.")],
    output: Output,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw a report again."""
    with session(as_json, debug) as here:
        from trimline import api

        page = api.report(folder, output)
        here.out.print(f"Report: {page}", soft_wrap=True, highlight=False)
        here.answer({"report": str(page)})


@app.command()
def package(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; or a package folder, copied to a new --output with more servers.")],
    output: Output = Path("runs/run"),
    targets: Annotated[
        list[str] | None, typer.Option("--for", metavar="SERVER", help="Also write serve/SERVER/; may be given several times.")
    ] = None,
    device: DeviceOption = Device.CPU,
    dtype: DTypeOption = DTypeName.AUTO,
    threads: Threads = None,
    trust: Trust = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the folder to ship."""
    with session(as_json, debug) as here:
        from trimline import api

        folder = api.package(recipe, output, targets=targets or (), options=_options(device, dtype, threads, trust), events=here.events)
        here.out.print(f"Package: {folder}", soft_wrap=True, highlight=False)
        here.answer({"package": str(folder)})


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, a plan or an ONNX folder.")],
    source: Annotated[Path | None, typer.Option(help="The dense checkpoint that a plan is for.")] = None,
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Only whether each weight is 2:4, along the axis that is summed over.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show widths, sizes, 2:4, and who loads it."""
    with session(as_json, debug) as here:
        from trimline.inspect import inspect_folder, inspect_sparsity, render_inspection, render_sparsity

        if sparsity:
            weights = inspect_sparsity(folder)
            render_sparsity(weights, here.out)
            here.answer({"folder": str(folder), "weights": [weight.as_record() for weight in weights]})
            return

        inspection = inspect_folder(folder, source)
        render_inspection(inspection, here.out)
        here.answer(asdict(inspection))


app.command()(verify)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine has and what clashes."""
    with session(as_json, debug) as here:
        from trimline.doctor import examine, render_findings

        findings = examine()
        render_findings(findings, here.out)
        here.answer({"findings": [asdict(finding) for finding in findings]})


app.command()(serve)


def _only_for_gguf(quantise: str | None) -> None:
    if quantise is not None:
        from pipeline.errors import TrimlineError

        raise TrimlineError("--quantise is for GGUF, and the format is onnx.", "Add --format gguf, or use --precision int4.")


def _options(device: Device, dtype: DTypeName, threads: int | None, trust: bool, memory: str | None = None) -> RunOptions:
    from pipeline.memory import parse_bytes
    from pipeline.options import RunOptions

    given: dict[str, Any] = {"device": device.value, "dtype": dtype.value, "trust_remote_code": trust}
    if threads is not None:
        given["threads"] = threads
    if memory is not None:
        given["memory"] = parse_bytes(memory)
    return RunOptions(**given)


def _show_folder(here: Session, folder: Path) -> None:
    from trimline.inspect import inspect_folder, render_inspection

    render_inspection(inspect_folder(folder), here.out)
    here.out.print(f"Written to {folder}", soft_wrap=True, highlight=False)
    here.answer({"folder": str(folder)})


def _run_answer(result: RunResult) -> dict[str, Any]:
    """What a script wants of a run: numbers that were measured, and where things are."""
    data = result.report
    return {
        "package": str(result.package),
        "report": str(result.page),
        "models": {row.name: {f.name: _plain(getattr(row, f.name)) for f in fields(row)} for row in data.models},
        "speedups": {
            f"{w.phase}: {w.name}": {
                "speedup": _plain(w.speedup),
                "allowed": w.allowed,
                "realised": _plain(w.realised),
                "verdict": w.verdict,
            }
            for w in data.workloads
        },
        "removed": _plain(data.removed),
        "skipped": [name for name, artefact in result.artefacts.items() if artefact.skipped],
    }


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def main() -> None:
    """Entry point of the console script."""
    ended_by_itself(app)


if __name__ == "__main__":
    main()
