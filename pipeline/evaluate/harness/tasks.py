"""Task files and names into the harness's own task objects, without its habits: no network unless a task lives on the hub."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.common.errors import TrimlineError, shortened, shown
from pipeline.common.events import Events
from pipeline.evaluate.harness.files import ALLOW, TaskFile, local_files, named_tasks
from pipeline.evaluate.recipe import LmEvalSlice
from pipeline.live.loading import first_words

SHOTS_SEED = 1234  # the harness's own

Tasks = dict[str, Any]  # what the harness's task manager hands out: tasks by name, groups by name


def harness_version() -> str:
    """Of the installed harness.

    Raises:
        TrimlineError: the extra is not installed.
    """
    try:
        found = version("lm_eval")
        if find_spec("lm_eval") is not None and find_spec("peft") is not None:
            return found
    except PackageNotFoundError:
        pass
    raise TrimlineError("The lm-eval harness is not installed.", "Install the extra: pip install 'trimline[lm-eval]'.")


def check_tasks(recipe: LmEvalSlice, events: Events) -> None:
    """What can be said before hours of pruning: the harness is there, task files are sound, names are known.

    Raises:
        TrimlineError: one of these is not so.
    """
    harness_version()
    files, names = local_files(recipe), named_tasks(recipe)
    if not recipe.allow_task_code:
        for task in files:
            _check_metrics(task)
    if names:
        events.note("asking lm-eval for its list of tasks, which takes a while")
        for name in names:
            _demand_known(name)


def open_tasks(recipe: LmEvalSlice, events: Events) -> Tasks:
    """The tasks with their data, and as many examples before each question as the recipe says.

    Raises:
        TrimlineError: a task does not fit its data, or its data is on a hub that cannot be reached.
    """
    check_tasks(recipe, events)
    from lm_eval.tasks import TaskManager

    files, names = local_files(recipe), named_tasks(recipe)
    for name in [*names, *(str(task.config["task"]) for task in files if not task.data)]:
        _demand_hub(name)
    with alone():
        manager = _known() if names else TaskManager(include_defaults=False)
        local = [_loaded(manager, _spec(task, recipe.allow_task_code), str(task.path)) for task in files]
        found: Tasks = {"tasks": {}, "groups": {}}
        for part in (*local, *(_loaded(manager, name, name) for name in names)):
            found["groups"] |= part.get("groups", {})
            for name, task in part["tasks"].items():
                if name in found["tasks"]:
                    raise TrimlineError(f"The task {name!r} is named twice.", "Name it once: results are listed by name.")
                found["tasks"][name] = task
        for task in found["tasks"].values():
            _set_shots(task, recipe.shots)
    return found


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The harness without its bars, its warnings and its worker processes, drawing the same numbers every time.

    Templates are filled in without access to Python's own objects: a template that reaches for them runs code otherwise.
    """
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    kept, own, level = dict(os.environ), utils.env, logging.getLogger("lm_eval").level
    sandbox = SandboxedEnvironment(loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline)
    sandbox.filters |= own.filters
    random.seed(0)
    np.random.seed(SHOTS_SEED)
    torch.manual_seed(SHOTS_SEED)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    utils.env = sandbox
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        utils.env = own
        logging.getLogger("lm_eval").setLevel(level)
        if "DISABLE_MULTIPROC" not in kept:
            del os.environ["DISABLE_MULTIPROC"]


@cache
def _known() -> Any:
    """All tasks that come with the harness; it reads thousands of files for that, once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _demand_known(name: str) -> None:
    with alone():
        names = _known().all_tasks
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]!r}?" if near else "`lm-eval ls tasks` lists them; a task of your own is named by its .yaml file."
        raise TrimlineError(f"lm-eval {harness_version()} knows no task {shown(name)}.", hint)


def _check_metrics(task: TaskFile) -> None:
    """A metric or filter that the harness does not have, it would look for on the hub."""
    from lm_eval.api import metrics, registry  # noqa: F401 - the first fills the second

    for metric in task.config.get("metric_list") or []:
        for key, known in (("metric", registry.metric_registry), ("aggregation", registry.aggregation_registry)):
            if key in metric and metric[key] not in known:
                raise TrimlineError(f"{task.path}: lm-eval has no {key} {shown(metric[key])}.", ALLOW)


def _spec(task: TaskFile, allow_code: bool) -> Any:
    config = dict(task.config)
    if allow_code:
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(task.path)
        config.pop("task_list", None)
    if task.data:
        del config["dataset_path"]
        config.pop("dataset_kwargs", None)
        config["custom_dataset"] = lambda **_: _data(task)
    return config


def _data(task: TaskFile) -> Any:
    """Split to data set, in memory: the harness's own loader would fill a cache in the home folder."""
    from datasets import Dataset, DatasetDict

    reader = {"json": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}[str(task.config["dataset_path"])]
    found = DatasetDict()
    for split, path in task.data.items():
        try:
            found[split] = Dataset.from_list(reader(path))
        except Exception as error:  # of several libraries, and of what stands in the file
            raise TrimlineError(
                f"{path} cannot be read ({first_words(error)}).", "Give one JSON object per line, CSV or parquet."
            ) from None
    return found


def _json_rows(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return list(parquet.read_table(path).to_pylist())


def _loaded(manager: Any, spec: Any, name: str) -> Tasks:
    try:
        found: Tasks = manager.load([spec])
    except TrimlineError:
        raise
    except Exception as error:  # the harness checks little, so anything may come out of a wrong task
        raise TrimlineError(
            f"lm-eval cannot open the task {name}: {first_words(error)}.", "Check its keys, its data and its splits."
        ) from error
    _refuse_unsafe(found)
    return found


def _demand_hub(name: str) -> None:
    # One request that fails at once: without it, `datasets` tries again for half a minute.
    from huggingface_hub import HfApi, constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        next(iter(HfApi().list_datasets(limit=1)), None)
    except Exception as error:  # the library raises many kinds
        raise TrimlineError(
            f"The data of the task {name!r} is on a hub that cannot be reached ({shortened(first_words(error), 120)}).",
            "Run it where there is a network, or name a task file with data that lies here.",
        ) from None


def _refuse_unsafe(found: Mapping[str, Any]) -> None:
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise TrimlineError(f"The task {name!r} runs code that the model writes.", "Run it with lm-eval itself, in a sandbox.")
        if getattr(task, "MULTIMODAL", False):
            raise TrimlineError(f"The task {name!r} shows images or sounds, which no model here reads.", "Leave it out.")


def _set_shots(task: Any, shots: int | None) -> None:
    """As the harness's own command does: a task that says 0 itself keeps that."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=SHOTS_SEED)
