"""File names of an exported folder."""

from __future__ import annotations

CONFIG = "checkpoint_config.json"


EXPORT = "export.json"
