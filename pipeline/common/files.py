"""Small files: JSON read with a bound on its size, and written for others to read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import TrimlineError, shortened

GATE = "gate.json"  # beside what a stage made of a model: how it compares with what it was made from
LARGEST_JSON = 32 * 2**20  # a list of lists takes twenty times its text in memory


def for_others(path: Path) -> None:
    """Lets others read a file as the process's umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_json(path: Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """A JSON object from a file of at most ``most`` bytes.

    Raises:
        TrimlineError: the file is missing, no file, too large, not JSON, or not an object.
    """
    if not path.exists():
        raise TrimlineError(f"{path} does not exist.", "Check the folder you gave.")
    if not path.is_file():  # reading a pipe could wait for ever
        raise TrimlineError(f"{path} is no file.", "Check the folder you gave.")
    if path.stat().st_size > most:
        raise TrimlineError(f"{path} is larger than {most >> 20} MiB.", "Fetch or write it again.")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\u" in text:  # an escape can spell half of a surrogate pair, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise TrimlineError(f"{path} is not valid JSON ({shortened(str(error), 200)}).", "Fetch or write it again.") from None
    if not isinstance(value, dict):
        raise TrimlineError(f"{path} holds a JSON {type(value).__name__}, not an object.", "Fetch or write it again.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes indented UTF-8 JSON with a final newline, keys in the order given."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
