"""The command line: one verb per stage. What each does is in ``trimline.api``; the verbs only read and print."""

from __future__ import annotations

from collections.abc import Callable

import typer

from trimline.cli.bench import bench
from trimline.cli.build import build
from trimline.cli.compare import compare
from trimline.cli.doctor import doctor
from trimline.cli.ending import ended_by_itself
from trimline.cli.evaluate import evaluate
from trimline.cli.export import export
from trimline.cli.inspect import inspect
from trimline.cli.new import new
from trimline.cli.package import package
from trimline.cli.prune import prune
from trimline.cli.rebuild import rebuild
from trimline.cli.recover import recover
from trimline.cli.report import report
from trimline.cli.run import run
from trimline.cli.serve import serve
from trimline.cli.sweep import sweep
from trimline.cli.verify import verify

# In the order of ``trimline --help``; with each a line to copy.
EXAMPLES: dict[Callable[..., object], str] = {
    new: "trimline new my-model --speedup 1.4 --for vllm",
    run: "trimline run my-model.yaml --output runs/my-model",
    prune: "trimline prune my-model.yaml --output runs/plan",
    rebuild: "trimline rebuild my-model runs/plan --profile decilm --output runs/smaller",
    recover: "trimline recover my-model.yaml runs/smaller --output runs/recovered",
    evaluate: "trimline evaluate runs/smaller --text my-text.txt",
    export: "trimline export runs/smaller --precision int8 --output runs/onnx",
    build: "trimline build runs/onnx-portable --request 512/128 --output runs/engine",
    bench: "trimline bench runs/dense runs/onnx --perplexity dense=13.9 --perplexity onnx=15.1 --output runs/bench",
    sweep: "trimline sweep my-model.yaml --grid remove=0.2,0.3 --output runs/sweep",
    compare: "trimline compare runs/one runs/other",
    report: "trimline report runs/my-model --output runs/report",
    package: "trimline package my-model.yaml --for vllm --output runs/my-model",
    inspect: "trimline inspect runs/my-model/package/model",
    verify: "trimline verify runs/my-model/package",
    doctor: "trimline doctor",
    serve: "trimline serve runs/my-model/package --name my-model",
}

app = typer.Typer(
    name="trimline",
    help="Makes a decoder-only language model smaller, proves that it computes the right thing, and measures that it is faster.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb, example in EXAMPLES.items():
    # The mark keeps the line whole, however narrow the terminal is.
    app.command(epilog=f"\b\nExample:\n  {example}")(verb)


def main() -> None:
    """Entry point of the console script."""
    ended_by_itself(app)
