"""A model through the tasks: what the harness finds, as a record that is the same byte for byte when made again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.common.errors import TrimlineError
from pipeline.common.events import Events
from pipeline.evaluate.harness.paired import standard_error
from pipeline.evaluate.harness.tasks import Tasks, alone, harness_version
from pipeline.evaluate.recipe import LmEvalSlice
from pipeline.live.loading import first_words

BOOTSTRAPS = 1000  # of metrics whose error has no formula
RESULT = "tasks.json"
OF_CHOICES = ("acc", "acc_norm")  # metrics that say of each document whether the right choice was the likeliest


def scores(model: Any, tasks: Tasks, recipe: LmEvalSlice, events: Events) -> dict[str, Any]:
    """Runs every task.

    Args:
        model: an ``lm_eval.api.model.LM``.
        tasks: of ``open_tasks``; used up, since the harness keeps answers in them.
        recipe: how many documents.
        events: progress.

    Returns:
        What tasks.json holds: per task and metric the value, its standard error and every document's own value.

    Raises:
        TrimlineError: a task does not fit its data, or a value is no number.
    """
    from lm_eval.evaluator import evaluate

    names = list(tasks["tasks"])
    events.note(f"lm-eval {harness_version()}: {', '.join(names)}")
    try:
        with alone():
            found: Any = evaluate(model, tasks, limit=recipe.limit, bootstrap_iters=BOOTSTRAPS, log_samples=True)
    except (TrimlineError, MemoryError):
        raise
    except OverflowError:
        raise _no_number(", ".join(names)) from None
    except Exception as error:  # templates that name columns which are not there, and whatever else a task may be
        raise TrimlineError(
            f"lm-eval cannot run {', '.join(names)}: {first_words(error)}.", "Check the task's templates and splits."
        ) from error
    rows = [row for name in names for row in _rows(name, tasks["tasks"][name], found)]
    return {
        "lm_eval": harness_version(),
        "limit": recipe.limit,
        "tasks": rows,
        "groups": [row for name in tasks["groups"] for row in _group_rows(name, found["results"].get(name, {}))],
    }


def _rows(name: str, task: Any, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    samples = found["samples"][name]
    better, aggregations = task.higher_is_better(), task.aggregation()
    for key, metric, filtered, value in _metrics(found["results"][name]):
        aggregation = getattr(aggregations.get(metric), "__name__", "mean")
        documents = [sample[metric] for sample in samples if sample["filter"] == filtered and metric in sample]
        error = found["results"][name].get(f"{metric}_stderr,{filtered}")
        own = standard_error(aggregation, documents) if not isinstance(error, float) else error
        if not math.isfinite(value):
            raise _no_number(f"{name} ({key})")
        yield {
            "task": name,
            "metric": metric,
            "filter": filtered,
            "shots": task.get_config("num_fewshot"),
            "value": value,
            "standard_error": own,
            "aggregation": aggregation,
            "higher_is_better": better.get(metric),
            "documents": len(documents),
            "per_document": documents,
        } | _chance(task, metric, samples)


def _chance(task: Any, metric: str, samples: list[Mapping[str, Any]]) -> dict[str, float]:
    """``chance``: the share of right answers by guessing, of a task of choices; nothing of other tasks and metrics."""
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice" or metric not in OF_CHOICES or not samples:
        return {}
    counts = [len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return {"chance": sum(1 / count for count in counts) / len(counts)} if all(counts) else {}


def _group_rows(name: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A group's own figure, where it has one; it cannot be paired, since it is no mean over documents."""
    for _, metric, filtered, value in _metrics(result):
        error = result.get(f"{metric}_stderr,{filtered}")
        yield {
            "group": name,
            "metric": metric,
            "filter": filtered,
            "value": value,
            "standard_error": error if isinstance(error, float) else None,
        }


def _metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """(key, metric, filter, value) of what the harness calls ``acc,none``."""
    for key, value in result.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            yield key, metric, filtered, float(value)


def _no_number(where: str) -> TrimlineError:
    return TrimlineError(f"The model predicts nothing in {where}: the metric is no number.", "Remove less, or repair the checkpoint.")
