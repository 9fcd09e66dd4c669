"""Files that a package takes over: linked where nothing minds, else copied so that blocks are shared where the disk can."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LINKED = (".safetensors", ".engine", ".plan")  # onnx refuses weights with several hard links; configs are copied, since people edit them


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link for ``LINKED``; a copy for other files, and where links between the two places are not possible."""
    source = source.resolve()  # a link to a symbolic link would break when that link's target moves
    if source.suffix not in LINKED:
        copy(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """A file of its own with the same content. XFS and Btrfs keep what both hold once, until one of them is written to."""
    try:
        with source.open("rb") as read, target.open("wb") as written:
            left = source.stat().st_size
            while left:
                done = os.copy_file_range(read.fileno(), written.fileno(), left)
                if not done:
                    raise OSError(f"{source} ended early")
                left -= done
    except (AttributeError, OSError):  # another system than Linux, or two file systems; a full disk says so again
        shutil.copyfile(source, target)
