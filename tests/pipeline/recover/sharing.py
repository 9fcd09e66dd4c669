"""One of the processes that torchrun starts: ``python -m tests.pipeline.recover.sharing FOLDER`` recovers in every way in ``ways.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.common.events import Events
from pipeline.common.options import RunOptions
from pipeline.recover.processes import first_process
from pipeline.recover.recipe import RecoverSlice
from pipeline.recover.stage import recover


def main(folder: Path) -> None:
    """Writes each result into a folder of the way's name; processes other than the first have nothing to write."""
    for name, values in json.loads((folder / "ways.json").read_text()).items():
        out = folder / (name if first_process() else f"other-{name}")
        out.mkdir()
        options = RunOptions(dtype="float32", threads=1)
        recover(folder / "dense", folder / "pruned", folder, RecoverSlice(**values), options, out, folder / f"work-{name}", Events())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
