"""Text out of a file or a hub data set, its rows joined by empty lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError
from pipeline.sources.recipe import TextSource

SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB_SECONDS = 10.0


def read_file(path: Path, column: str) -> str:
    """The text of a .txt file, or of one column of a .jsonl or .parquet file.

    Raises:
        TrimlineError: another kind of file, not UTF-8, damaged, or without that column.
    """
    if path.suffix not in SUFFIXES:
        raise TrimlineError(f"{path.name} is not a kind of text that is read here.", f"Give a {', '.join(SUFFIXES)} file.")
    try:
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8")
        rows = _json_rows(path, column) if path.suffix == ".jsonl" else _parquet_rows(path, column)
        return _joined(rows, path.name, column)
    except (ValueError, RecursionError, OSError) as error:
        raise TrimlineError(
            f"{path.name} cannot be read ({_first_line(error)}).", "Check that it is UTF-8 and whole, and name its column."
        ) from None


def read_data_set(named: TextSource) -> str:
    """One column of a hub data set; what is downloaded is kept only as long as it is read.

    Raises:
        TrimlineError: no such data set, split or column, or no network.
    """
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        _demand_reachable(named.source)
        with tempfile.TemporaryDirectory(prefix="trimline-data-") as cache:
            rows = load_dataset(named.source, named.config, split=named.split or "train", cache_dir=cache)
            if named.column not in rows.column_names:
                raise _no_column(named.source, named.column)
            return _joined(rows[named.column], named.source, named.column)
    except TrimlineError:
        raise
    except Exception as error:  # the libraries raise many kinds, all of which a wrong name or a missing network causes
        raise TrimlineError(
            f"The data set {named.source} cannot be loaded ({_first_line(error)}).",
            "Check its id, config, split, column and the network, or give a local file.",
        ) from None


def _demand_reachable(name: str) -> None:
    # One request that fails at once: without it, `datasets` tries again for half a minute.
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        HfApi().dataset_info(name, timeout=HUB_SECONDS)


def _json_rows(path: Path, column: str) -> list[Any]:
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if any(not isinstance(row, dict) or column not in row for row in rows):
        raise _no_column(path.name, column)
    return [row[column] for row in rows]


def _parquet_rows(path: Path, column: str) -> list[Any]:
    from pyarrow import ArrowException, parquet

    try:
        if column not in parquet.read_schema(path).names:
            raise _no_column(path.name, column)
        return parquet.read_table(path, columns=[column])[column].to_pylist()
    except ArrowException as error:
        raise ValueError(str(error)) from error


def _joined(rows: Iterable[Any], name: str, column: str) -> str:
    texts = [row for row in rows if row is not None]
    wrong = next((row for row in texts if not isinstance(row, str)), None)
    if wrong is not None:
        raise TrimlineError(
            f"The column {column!r} of {name} holds values of type {type(wrong).__name__}.", "Name the column that holds the text."
        )
    return "\n\n".join(texts)


def _no_column(name: str, column: str) -> TrimlineError:
    return TrimlineError(f"{name} has rows without {column!r}.", "Name the column that holds the text.")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
