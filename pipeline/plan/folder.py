"""File names of a plan: ``plan.json`` also lies beside every checkpoint that was made by one."""

from __future__ import annotations

PLAN, UPDATES, SCORES = "plan.json", "updates.safetensors", "scores.safetensors"
