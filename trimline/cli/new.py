"""``trimline new``: a recipe to start from."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.common.errors import TrimlineError
from trimline.cli.options import Debug, Json
from trimline.cli.session import Session, session
from trimline.starting.clients import CLIENTS


def new(
    model: Annotated[
        str | None, typer.Argument(help="'default', a Hugging Face folder, a .gguf file or a hub id; its config is read.")
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="How many times as fast decoding is to be, in ONNX Runtime: 1.4.")] = None,
    fit: Annotated[str | None, typer.Option(help="What weights and a cache of 4,096 tokens may take where it is served: 8GiB.")] = None,
    remove: Annotated[float | None, typer.Option(help="Share of the decoder's linear parameters that goes: 0.3.")] = None,
    consumers: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="NAME", help=f"Who is to load the result; may be given several times: {', '.join(CLIENTS)}."),
    ] = None,
    like: Annotated[str | None, typer.Option(metavar="NAME", help="Copy a recipe that ships with Trimline, for this model.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the recipes that ship with Trimline, and write nothing.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file, which must be new; default: named after the model, here.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a recipe to start from, with comments."""
    with session(as_json, debug) as here:
        if show:
            return _list(here)
        from trimline import api

        if model is None:
            raise TrimlineError("No model is named.", "Write trimline new MODEL; 'default' is the built-in one.")
        if like and (speedup, fit, remove, consumers) != (None, None, None, None):
            raise TrimlineError("--like copies a recipe as it is.", "Leave --speedup, --fit, --remove and --for out.")
        command = shlex.join(["trimline", *sys.argv[1:]])
        made = api.new(model, output, speedup=speedup, fit=fit, remove=remove, consumers=consumers or (), like=like, command=command)
        for line in made.reasons:
            here.out.print(line, markup=False, highlight=False, soft_wrap=True)
        here.out.print(f"Written: {made.path}", markup=False, highlight=False, soft_wrap=True)
        here.out.print(f"Next: {made.next_command}", markup=False, highlight=False, soft_wrap=True)
        return here.answer(
            {"recipe": str(made.path), "next": made.next_command, "reasons": made.reasons, "values": made.recipe.model_dump(mode="json")}
        )


def _list(here: Session) -> None:
    from trimline.starting.shipped import first_comment, shipped_recipes

    found = {name: first_comment(text) for name, text in shipped_recipes().items()}
    for name, comment in found.items():
        here.out.print(f"{name:<26}{comment}", markup=False, highlight=False, soft_wrap=True)
    here.answer({"recipes": found})
