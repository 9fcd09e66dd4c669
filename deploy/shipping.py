"""The folder to ship, beside the store: files of its own, so that it can be archived, copied and edited."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deploy.folder import MANIFEST
from deploy.placing import copy
from deploy.verify import verify
from pipeline.artefacts.artefact import PARTIAL
from pipeline.common.errors import TrimlineError


def ship(made: Path, beside: Path, store: Path) -> None:
    """Copies a package out of the store.

    No file is a hard link: who edits the package must not edit the store. XFS and Btrfs keep equal content once. A package
    of the same manifest stays as it is.

    Args:
        made: the package in its artefact.
        beside: where people look for it.
        store: on the same file system as ``beside``; what a kill leaves in there is cleared by the next run.

    Raises:
        TrimlineError: another package is there and somebody has changed it, or the disk is full.
    """
    if is_same_package(made, beside):
        return
    _demand_untouched(beside)
    new, old = store / f"{PARTIAL}shipped", store / f"{PARTIAL}replaced"
    try:
        shutil.copytree(made, new, copy_function=lambda source, target: copy(Path(source), Path(target)))
        if beside.is_symlink():
            beside.unlink()
        elif beside.exists():
            os.replace(beside, old)
        os.replace(new, beside)
    except OSError as error:
        raise TrimlineError(f"The package could not be copied to {beside}: {error}.", f"Free some space, or take {made}.") from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def is_same_package(made: Path, beside: Path) -> bool:
    """Whether ``beside`` is a folder with the manifest of ``made``."""
    there = beside / MANIFEST
    return not beside.is_symlink() and there.is_file() and there.read_bytes() == (made / MANIFEST).read_bytes()


def _demand_untouched(beside: Path) -> None:
    if beside.is_symlink() or not beside.exists():
        return
    problems = verify(beside) if (beside / MANIFEST).is_file() else ["it holds no manifest"]
    if problems:
        raise TrimlineError(
            f"{beside} is not as an earlier run left it ({problems[0]}), and a new package would replace it.",
            "Move it away, then run again: what is made already is kept.",
        )
