"""Which of the Trainer's states a killed run goes on from: the last one that is whole.

The Trainer writes a folder file by file, so a kill can leave half of one. Once it says that it is done, the digests of
all files are put beside them; a folder whose files do not match, or that has none, does not count. They are torch files
of this run's own making in its own working folder; transformers reads them with ``weights_only``, which runs no code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.artefacts.artefact import file_digest
from pipeline.common.errors import TrimlineError
from pipeline.common.files import read_json, write_json

SEAL = "whole.json"
KEPT = 2  # states; the older one serves while the newer one is not whole yet


class Sealer(TrainerCallback):
    """Seals every state once it is written."""

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Called by the Trainer, on every process."""
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def seal(folder: Path) -> None:
    """Writes down the digest of every file in the folder."""
    (folder / SEAL).unlink(missing_ok=True)
    write_json(folder / SEAL, {path.relative_to(folder).as_posix(): file_digest(path) for path in _files(folder)})


def last_whole(work: Path) -> Path | None:
    """The latest state in the working folder of which nothing is missing or changed."""
    found = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    states = sorted((path for path, number in found.items() if number.isdecimal()), key=lambda path: int(found[path]))
    return next((state for state in reversed(states) if _is_whole(state)), None)


def _is_whole(folder: Path) -> bool:
    try:
        sums = read_json(folder / SEAL)
    except TrimlineError:
        return False
    return all((folder / name).is_file() and file_digest(folder / name) == digest for name, digest in sums.items())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
