"""What ``evaluate --task`` does: tasks of the lm-eval harness instead of perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimline.cli.session import Session

if TYPE_CHECKING:
    from pipeline.common.options import RunOptions

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="An lm-eval task instead: 'trimline' (ours), a .yaml file, a folder of them, or a name. May be repeated.",
    ),
]
Shots = Annotated[int | None, typer.Option(min=0, max=1000, help="With --task: solved examples before a question; default: the task's.")]
Limit = Annotated[int | None, typer.Option(min=1, help="With --task: documents, the first ones; default: all.")]
Batch = Annotated[int, typer.Option(min=1, help="With --task: documents that are read at once.")]
TaskCode = Annotated[bool, typer.Option("--allow-task-code", help="With --task: run Python code that a local task file names.")]


def evaluate_tasks(here: Session, model: str, tasks: Sequence[str], options: RunOptions, **chosen: Any) -> None:
    """Runs them and prints a table; ``chosen`` are keys of the recipe's ``lm_eval``."""
    from trimline import api
    from trimline.recipe import checked_slice
    from trimline.reporting.content import Cell, Column, Table
    from trimline.reporting.terminal import rich_table

    recipe = checked_slice("lm_eval", {"tasks": list(tasks), **chosen})
    found = api.evaluate_tasks(model, recipe, options=options, events=here.events)
    rows = tuple(
        (Cell(row.get("task") or row["group"]), Cell(row["metric"]), Cell(f"{row['value']:.4g}"), Cell(_error(row)), Cell(_chance(row)))
        for row in (*found["tasks"], *found["groups"])
    )
    columns = (
        Column("Task"),
        Column("Metric"),
        Column("Value", numeric=True),
        Column("Standard error", numeric=True),
        Column("Guessing", numeric=True),
    )
    here.out.print(rich_table(Table(columns, rows), f"lm-eval {found['lm_eval']}"))
    short = [{key: value for key, value in row.items() if key != "per_document"} for row in found["tasks"]]
    here.answer(found | {"tasks": short})


def only_with_tasks(given: bool) -> None:
    """Refuses options that perplexity has no use for.

    Raises:
        TrimlineError: some were given.
    """
    if given:
        from pipeline.common.errors import TrimlineError

        raise TrimlineError("--shots, --limit, --batch and --allow-task-code are for tasks, and none is named.", "Add --task TASK.")


def _error(row: dict[str, Any]) -> str:
    return "–" if row["standard_error"] is None else f"{row['standard_error']:.2g}"


def _chance(row: dict[str, Any]) -> str:
    return f"{row['chance']:.3g}" if "chance" in row else "–"
