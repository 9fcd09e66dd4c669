"""The command line: one verb per stage. What each does is in ``trimline.api``; the verbs only read and print."""

from __future__ import annotations

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

# In the order of ``trimline --help``.
VERBS = (new, run, prune, rebuild, recover, evaluate, export, build, bench, sweep, compare, report, package, inspect, verify, doctor, serve)

app = typer.Typer(
    name="trimline",
    help="Makes a decoder-only language model smaller, proves that it computes the right thing, and measures that it is faster.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in VERBS:
    app.command()(verb)


def main() -> None:
    """Entry point of the console script."""
    ended_by_itself(app)
