"""Every supported type on a tiny model, through every stage and exporter: ``python -m benchmarks.studies.types``.

Each type has a process of its own, which ends no other when it dies or hangs: that is a cell too. Rows that are there are not
made again, so that the command goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from benchmarks.machine.environment import commit
from benchmarks.studies.pages import demand_folder, fill
from benchmarks.studies.types.cells import CELLS, FAILS
from benchmarks.studies.types.table import table
from benchmarks.studies.types.tiny import TINY_TYPES
from pipeline.common.children import Child, Died, Words, module_command
from pipeline.common.errors import TrimlineError

MEASURED = Path(__file__).parents[1] / "measured" / "types.jsonl"
LIBRARIES = ("transformers", "torch", "onnxruntime", "onnxruntime-genai", "gguf", "llama-cpp-python")
MODULE = "benchmarks.studies.types.cells"
Record = dict[str, Any]


def part_of(cell: str) -> str:
    """What cells are chosen by: the space, the lowering, or what comes before the stroke."""
    first, _, second = cell.partition("/")
    return second if first == "onnx" else first


PARTS = tuple(dict.fromkeys(map(part_of, CELLS)))


def row(model_type: str, before: Record, asked: Sequence[str], limit: float, work: Path) -> Record:
    """What came of the cells of a type that were asked for, beside those that are there; ``limit`` is in seconds, of one cell."""
    shutil.rmtree(work, ignore_errors=True)  # what an earlier row left
    started, cells = monotonic(), dict(before.get("cells", {}))
    left = list(asked)
    while left:  # a new process each time that one has died
        with Child(module_command(MODULE), Words(f"tries {model_type}"), patience=limit) as child:
            while left and answered(child, cells, left.pop(0), limit, {"type": model_type, "work": str(work)}):
                pass
    return {
        "type": model_type,
        "cells": {name: cells[name] for name in CELLS if name in cells},
        "seconds": round(before.get("seconds", 0.0) + monotonic() - started, 1),
        "commit": commit(),
        "versions": versions(),
    }


def answered(child: Child, cells: dict[str, Record], name: str, limit: float, what: Record) -> bool:
    """Adds a cell; says whether the process lives on."""
    try:
        cells[name] = child.reply("try", cell=name, **what)
    except TrimlineError as error:
        why = f"the process ended with status {error.code}" if isinstance(error, Died) else f"no answer within {limit:g} s"
        cells[name] = {"outcome": FAILS, "why": why}
        return False
    return True


def versions() -> dict[str, str]:
    """Of what reads, runs or builds the results here."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def known(records: Path) -> dict[str, Record]:
    """Rows that are there, by type."""
    lines = records.read_text(encoding="utf-8").splitlines() if records.exists() else ()
    return {record["type"]: record for record in map(json.loads, lines)}


def keep(records: Path, rows: Sequence[Record]) -> None:
    """All rows, a line each, in the order of their names."""
    beside = records.with_name(f".{records.name}")
    beside.write_text(
        "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in sorted(rows, key=lambda one: str(one["type"]))), encoding="utf-8"
    )
    beside.replace(records)


def chosen(what: str, asked: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """Those of these names; all without.

    Raises:
        TrimlineError: there is none of a name.
    """
    if unknown := [name for name in asked or () if name not in known]:
        raise TrimlineError(f"There is no {what} {unknown[0]!r}.", f"Known are {', '.join(known)}.")
    return tuple(name for name in known if not asked or name in asked)


def main(
    only: Annotated[list[str] | None, typer.Option(help="Only these types; rows of others stay as they are.")] = None,
    part: Annotated[list[str] | None, typer.Option(help=f"Only these cells: {', '.join(PARTS)}.")] = None,
    records: Annotated[Path, typer.Option(help="A file of rows, one JSON object per line; what is there is not made again.")] = MEASURED,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps what is made, a folder per type; without, nothing is kept.")] = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that a cell may take.")] = 600.0,
    anew: Annotated[bool, typer.Option(help="Make the chosen cells again.")] = False,
    page: Annotated[Path | None, typer.Option(help="Put the table into this page, at types.")] = None,
) -> None:
    """Try every cell of every type, and print one table."""
    try:
        demand_folder(records)
        types, parts, found = chosen("tiny model of type", only, TINY_TYPES), chosen("part", part, PARTS), known(records)
        for name in types:
            before = found.get(name, {})
            asked = [cell for cell in CELLS if part_of(cell) in parts and (anew or cell not in before.get("cells", {}))]
            if asked:
                with ExitStack() as stack:
                    base = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    found[name] = row(name, before, asked, limit, base / name)
                keep(records, list(found.values()))
                typer.echo(f"{name}: {found[name]['seconds']:g} s", err=True)
        drawn = table([found[name] for name in TINY_TYPES if name in found])
        typer.echo(drawn)
        if page is not None:
            fill(page, "types", drawn)
    except TrimlineError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
