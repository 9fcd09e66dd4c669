"""What people type where a file or folder is asked for."""

from __future__ import annotations

from pathlib import Path


def typed_path(name: str) -> Path:
    """The path, with ``~`` and ``~somebody`` for their homes; as it stands where there is no such home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
