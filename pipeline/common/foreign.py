"""What lies in a folder that somebody else made: files, and no links that take something along which was never in it."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import TrimlineError

WEIGHTS = ".safetensors"


def check_files(folder: Path) -> None:
    """Looks at every entry of a checkpoint folder, before anything in it is opened or copied.

    Weights may be links, since people keep them elsewhere, and what is no safetensors file is not read. Everything else
    is copied into results, so a link that leads out of the folder could carry a private file into a package. A hub cache
    links into its own ``blobs``.

    Raises:
        TrimlineError: an entry is a pipe, a device or a broken link, which could block for ever, or a link leads outside.
    """
    for path in sorted(folder.iterdir()):
        if not (path.is_file() or path.is_dir()):
            raise TrimlineError(f"{path} is no file: a pipe, a device, or a link to nothing.", "Fetch the checkpoint again, or remove it.")
        if path.is_symlink() and path.is_file() and not path.stat().st_size:  # what /proc holds looks like an empty file
            raise TrimlineError(f"{path} is a link to nothing.", "Fetch the checkpoint again, or remove it.")
        if path.suffix != WEIGHTS:
            check_link(path, folder)


def check_link(path: Path, folder: Path) -> None:
    """Looks at where an entry below a checkpoint folder leads.

    Raises:
        TrimlineError: it is a link to something that is neither in the folder nor in the ``blobs`` of its hub cache.
    """
    home = folder.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in homes):
        raise TrimlineError(
            f"{path} is a link that leads out of the folder, to {path.resolve()}.", "Put the file itself there, if it is yours."
        )
