"""Digests that are kept, per setting, and the same made anew by a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.sameness.setting import present_setting

ROOT = Path(__file__).parents[2]
DIGESTS = Path(__file__).parent / "digests.json"
PARTS = ("tiny", "runs", "quickstart")
# Set before torch is imported, whoever imports it first.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")

Digests = dict[str, str]


class NoBaseline(Exception):
    """Nothing is kept for this setting; the message says how to make it."""


def made_anew(part: str) -> Digests:
    """Digests of a part as the code beside this file computes it, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sameness-") as folder:
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("TRIMLINE_LLAMA_CPP", None)  # a GGUF's gate.json says what an installed llama.cpp computed
        command, said = [sys.executable, "-m", "tests.sameness.computing", part, "answer.json"], Path(folder) / "said"
        with said.open("w", encoding="utf-8") as stderr:  # libraries say a lot there
            done = subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, stderr=stderr, check=False)
        if done.returncode:
            raise RuntimeError(f"{said.read_text(encoding='utf-8')[-4000:]}\nThe part {part} could not be computed.")
        found: Digests = json.loads((Path(folder) / "answer.json").read_text(encoding="utf-8"))
    return found


def kept(part: str, path: Path = DIGESTS) -> Digests:
    """What is kept of a part for the present setting.

    Raises:
        NoBaseline: nothing is.
    """
    present = present_setting()
    entries = _read(path)
    for entry in entries:
        if entry["setting"] == present and part in entry["digests"]:
            return entry["digests"][part]
    nearest = min((_unlike(entry["setting"], present) for entry in entries), key=len, default=["there are none at all"])
    raise NoBaseline(
        f"No digests of the part {part} are kept for this processor and these libraries ({'; '.join(nearest) or 'of other parts there are'}). "
        f"Make them on the commit before the change: python -m tests.sameness --only {part} --write"
    )


def write(part: str, found: Digests, path: Path = DIGESTS) -> None:
    """Keeps a part's digests for the present setting, in place of those that were there."""
    present, entries = present_setting(), _read(path)
    mine = next((entry for entry in entries if entry["setting"] == present), None)
    if mine is None:
        entries.append(mine := {"setting": present, "digests": {}})
    mine["digests"][part] = dict(sorted(found.items()))
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _unlike(there: dict[str, str], here: dict[str, str]) -> list[str]:
    return [f"{key} {here[key]}, kept: {there.get(key, 'none')}" for key in here if there.get(key) != here[key]]
