"""File names of the two texts, and of what is known of them."""

from __future__ import annotations

CALIBRATION, EVALUATION, TEXTS = "calibration.txt", "evaluation.txt", "text.json"
TEXT_OF = {"calibration": CALIBRATION, "evaluation": EVALUATION}  # by role
