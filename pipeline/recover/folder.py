"""File name of what training left beside the weights."""

from __future__ import annotations

RECOVERED = "recover.json"
