"""Text out of a file or a hub data set, its rows joined by empty lines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError, shortened
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
    lines = path.read_bytes().split(b"\n")
    return [_json_row(line, f"Line {number:,} of {path.name}", column) for number, line in enumerate(lines, start=1) if line.strip()]


def _json_row(line: bytes, place: str, column: str) -> str | None:
    """The text of one row.

    Raises:
        TrimlineError: it is not UTF-8, not JSON, no object, or its column is missing or holds something else; names the line.
    """
    try:
        row = json.loads(line.decode("utf-8"))
        if isinstance(row, dict) and isinstance(row.get(column), str):
            row[column].encode()
    except UnicodeEncodeError:
        raise TrimlineError(f"{place} holds half of a surrogate pair.", "Mend that escape.") from None
    except UnicodeDecodeError as error:
        raise TrimlineError(f"{place} is not UTF-8 (byte {error.start + 1}).", "Write the file as UTF-8, or leave that line out.") from None
    except (ValueError, RecursionError) as error:
        raise TrimlineError(f"{place} is not JSON ({_first_line(error)}).", "Mend that line, or leave it out.") from None
    if not isinstance(row, dict):
        raise TrimlineError(f"{place} holds no object but a {type(row).__name__}.", f'Write {{"{column}": "…"}} in every line.')
    if column not in row:
        raise TrimlineError(f"{place} has no {column!r}; it has {_named(row)}.", "Name the column that holds the text.")
    if not isinstance(row[column], str | None):
        raise TrimlineError(f"{place} has a {type(row[column]).__name__} for {column!r}.", "Name the column that holds the text.")
    return row[column]


def _named(row: dict[str, Any]) -> str:
    return shortened(", ".join(map(repr, row)) or "nothing")


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
