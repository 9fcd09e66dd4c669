"""Task files of the lm-eval harness that lie here: read, checked for what would run code, and hashed.

A task file of that harness is a small program: ``!function`` imports Python, ``class`` names some, a metric that it does
not know is fetched from the hub as a script, and data may be pickles. All of this is refused unless code is allowed, and
what nobody needs for a task of their own is refused always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from pipeline.artefacts.artefact import file_digest
from pipeline.common.errors import TrimlineError, shown
from pipeline.common.plain_yaml import read_plain_yaml
from pipeline.evaluate.harness.shipped import shipped_files
from pipeline.evaluate.recipe import LmEvalSlice
from pipeline.sources.places import typed_path

SUFFIXES = (".yaml", ".yml")
LARGEST_FILE = 4 * 2**20
DEEPEST = 8  # files that include one another
READERS = ("json", "csv", "parquet")  # kinds of data that hold values only
DATA_KEYS = {"data_files"}
PLAIN_KEYS = (
    *("task", "task_alias", "tag", "include", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split"),
    *("test_split", "fewshot_split", "doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter"),
    *("fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats"),
    *("filter_list", "should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata", "unsafe_code"),
)
CODE_KEYS = ("class", "custom_dataset", "process_docs", "process_results", "use_prompt", "doc_to_image", "doc_to_audio")
ALLOW = "If you trust it, read it first and set lm_eval.allow_task_code: true (--allow-task-code), which runs it."


@dataclass(frozen=True)
class TaskFile:
    """One task that lies here.

    Attributes:
        path: its YAML file.
        config: what the file says, its includes merged in; empty where code is allowed, since the harness reads it then.
        data: split to data file; empty where the data comes from the hub.
        read: every file that the task depends on.
    """

    path: Path
    config: dict[str, Any]
    data: dict[str, Path] = field(default_factory=dict)
    read: tuple[Path, ...] = ()


def local_files(recipe: LmEvalSlice) -> list[TaskFile]:
    """The task files among ``recipe.tasks``, in that order; those of a folder by name.

    Raises:
        TrimlineError: a file is missing, is no task, or would run code that the recipe does not allow.
    """
    found = [read_task(path, recipe.allow_task_code) for name in recipe.tasks for path in _paths(name)]
    names = [str(task.config["task"]) for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TrimlineError(
            f"The task {twice!r} is there twice.",
            "Name it once ('trimline' holds every task that ships), or rename that of a file: results are listed by name.",
        )
    return found


def named_tasks(recipe: LmEvalSlice) -> list[str]:
    """The tasks that the harness knows by name: whatever is no path, and no name of ours."""
    return [name for name in recipe.tasks if not shipped_files(name) and not _is_path(name)]


def identify(recipe: LmEvalSlice) -> dict[str, Any]:
    """What the tasks depend on: content hashes of local files; the harness's own go with its version."""
    files = {path for task in local_files(recipe) for path in task.read}
    return {"files": sorted([path.name, file_digest(path)] for path in files), "named": named_tasks(recipe)}


def read_task(path: Path, allow_code: bool) -> TaskFile:
    """One task file with what it includes.

    Raises:
        TrimlineError: as ``local_files``.
    """
    config, read = _merged(path, allow_code, ())
    if not isinstance(config.get("task"), str):
        raise TrimlineError(f"{path} names no task.", "Give it a key 'task' with the task's name; groups are not read, only their tasks.")
    _refuse_always(path, config)
    if not allow_code:
        _refuse_code(path, config)
    data = _data_files(path, config)
    code = sorted(path.parent.rglob("*.py")) if allow_code else []
    return TaskFile(path, config, data, (*read, *data.values(), *code))


def _is_path(name: str) -> bool:
    return name.endswith(SUFFIXES) or "/" in name or name.startswith((".", "~")) or Path(name).is_dir()


def _paths(name: str) -> list[Path]:
    if own := shipped_files(name):
        return own
    if not _is_path(name):
        return []
    path = typed_path(name)
    if path.is_dir():
        texts = {found: _text(found) for found in sorted(path.iterdir()) if found.suffix in SUFFIXES}
        tasks = [found for found, text in texts.items() if any(line.startswith("task:") for line in text.splitlines())]
        if not tasks:
            raise TrimlineError(f"{path} holds no task file.", f"Give a folder with {' or '.join(SUFFIXES)} files that name a task.")
        return tasks
    if not path.is_file():
        raise TrimlineError(f"There is no task file {name}.", "Give a YAML file, a folder of them, or the name of a task of lm-eval.")
    return [path]


def _merged(path: Path, allow_code: bool, above: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The values of a file over those that it includes; and the files, this one last."""
    if path.resolve() in above or len(above) >= DEEPEST:
        raise TrimlineError(f"{path} includes itself, or more than {DEEPEST} files one in another.", "Write the values out.")
    config = _values(path, allow_code)
    names = config.pop("include", [])
    merged: dict[str, Any] = {}
    read: tuple[Path, ...] = ()
    for name in names if isinstance(names, list) else [names]:
        below, files = _merged(path.parent / str(name), allow_code, (*above, path.resolve()))
        merged |= below
        read += files
    return merged | _absolute(path, config), (*read, path)


def _values(path: Path, allow_code: bool) -> dict[str, Any]:
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise TrimlineError(f"{path} is not valid YAML: {shown(' '.join(str(error).split()), 200)}.", "Mend that place.") from None
    tags = sorted({tag for tag in _tags(node) if tag.startswith("!")}) if node is not None else []
    if tags and not allow_code:
        raise TrimlineError(f"{path} uses {tags[0]}, which runs Python code.", ALLOW)
    value = yaml.load(text, Loader=_Unresolved) if tags else read_plain_yaml(text, str(path))
    if not isinstance(value, dict):
        raise TrimlineError(f"{path} holds no task.", "Write keys and values, as in lm-eval's guide to new tasks.")
    return value


class _Unresolved(yaml.SafeLoader):
    """Reads ``!function`` as the words behind it: to find out what a task is called, not to run it."""


_Unresolved.add_multi_constructor("!", lambda _, tag, node: f"{tag} {getattr(node, 'value', '')}")


def _tags(node: yaml.Node) -> Iterator[str]:
    """Every tag in a document; an alias counts once."""
    waiting, seen = [node], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node.tag
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TrimlineError(f"{path} is larger than {LARGEST_FILE >> 20} MiB.", "Give a task file of lm-eval.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrimlineError(f"{path} cannot be read ({type(error).__name__}).", "Give a UTF-8 task file of lm-eval.") from None


def _absolute(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Data files are named from where the task file lies, not from where a command was typed."""
    kwargs = config.get("dataset_kwargs")
    if not isinstance(kwargs, dict) or "data_files" not in kwargs:
        return config
    files = kwargs["data_files"]
    named = files if isinstance(files, dict) else {"train": files}
    wrong = next((file for file in named.values() if not isinstance(file, str)), None)
    if wrong is not None:
        raise TrimlineError(f"{path} names {shown(wrong)} as data of a split.", "Name one file per split.")
    return config | {"dataset_kwargs": kwargs | {"data_files": {split: str(path.parent / file) for split, file in named.items()}}}


def _refuse_always(path: Path, config: Mapping[str, Any]) -> None:
    """What no option of ours turns on."""
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict) and kwargs.get("trust_remote_code"):
        raise TrimlineError(f"{path} lets a data set bring code of its own (trust_remote_code).", "Take that key out.")
    if config.get("unsafe_code"):
        raise TrimlineError(f"{path} runs what the model writes (unsafe_code).", "Run such a task with lm-eval itself, in a sandbox.")


def _refuse_code(path: Path, config: Mapping[str, Any]) -> None:
    for key in config:
        if key in CODE_KEYS:
            raise TrimlineError(f"{path} has the key {key!r}, which names Python code or another prompt library.", ALLOW)
        if key not in PLAIN_KEYS:
            near = get_close_matches(str(key), PLAIN_KEYS, n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]!r}?" if near else "Take it out; lm-eval's guide to new tasks lists the keys."
            raise TrimlineError(f"{path} has an unknown key {key!r}.", hint)
    metrics = config.get("metric_list") or []
    if not isinstance(metrics, list) or not all(isinstance(metric, dict) for metric in metrics):
        raise TrimlineError(f"{path} has a metric_list that is no list of metrics.", "Write it as in lm-eval's guide to new tasks.")
    if any(metric.get("hf_evaluate") for metric in metrics):
        raise TrimlineError(f"{path} takes a metric from the hub as a script (hf_evaluate).", ALLOW)


def _data_files(path: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Split to file, where the data lies here.

    Raises:
        TrimlineError: a file is missing, or of a kind that is not read.
    """
    reader, kwargs = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    files = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    if reader in READERS:
        if not files or set(kwargs) != DATA_KEYS:
            raise TrimlineError(f"{path} does not say where its data is.", "Give dataset_kwargs: {data_files: {test: FILE}}, and no more.")
        found = {split: Path(file) for split, file in files.items()}
        if missing := next((file for file in found.values() if not file.is_file()), None):
            raise TrimlineError(f"{path} names {missing}, which is not there.", "Data files are named from the task file's own folder.")
        return found
    if not isinstance(reader, str) or Path(reader).exists() or Path(path.parent / reader).exists() or files:
        raise TrimlineError(
            f"{path} reads its data with {shown(reader)}.", f"Use one of {', '.join(READERS)} with data_files, or the id of a hub data set."
        )
    return {}
